"""A decoder of transformers with its key-value cache as tensors in and out: what exporters trace."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux.caching import Cache, CacheLayer, axes, of_onnx, past_shapes, present_names
from edgeredux.decoder_check import CACHED_LAYERS, check_cached_layers
from edgeredux.errors import ModelError, one_line
from edgeredux.feeds import Feeder
from edgeredux.model import Interface, Model

if TYPE_CHECKING:
    import torch


def with_cache(model: Model) -> Model:
    """The same decoder taking and giving its cache by Optimum's names. Raises ModelError when it has none."""
    if model.task != "causal-lm" or not model.is_transformers:
        raise ModelError(f"model {model.name}: a key-value cache is for causal-lm models of transformers")
    check_cached_layers(model.module.config, model.name)
    cache = cache_of(model)
    module = _module(model.module, cache)
    return replace(model, module=module, is_transformers=False, **_interface(model, cache))


def interface_with_cache(interface: Interface, cache: Cache) -> Interface:
    """The interface of a decoder's exported file with this cache."""
    return replace(interface, **_interface(interface, cache))


def with_past(feeder: Feeder, path: Path) -> Feeder:
    """The same samples for an exported file: with an empty past where it has a cache."""
    cache = of_onnx(path) if path.suffix == ".onnx" else ()
    return feeder.of(interface_with_cache(feeder.interface, cache)) if cache else feeder


def _interface(interface: Interface, cache: Cache) -> dict[str, Any]:
    return {
        "input_names": ("input_ids", "attention_mask", "position_ids", *past_shapes(cache)),
        "output_names": ("logits", *present_names(cache)),
        "axes": {**interface.axes, "position_ids": ("batch", "sequence"), **axes(cache)},
        "cache": cache,
    }


def cache_of(model: Model) -> Cache:
    """Heads and sizes that each layer really keeps: one forward pass says, whatever the config does."""
    import torch

    module: Any = model.module
    with torch.inference_mode():
        ids = torch.zeros(1, 2, dtype=torch.int64, device=module.device)
        try:
            out = module(input_ids=ids, use_cache=True, past_key_values=fresh_cache())
        except Exception as problem:  # whatever the model's own code stumbles over
            said = f"model {model.name}: it cannot run with a key-value cache: {problem}"
            raise ModelError(one_line(said, 300)) from problem
    layers = []
    for index, layer in enumerate(getattr(getattr(out, "past_key_values", None), "layers", ())):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4 or keys.shape[2] != 2:
            kind = type(layer).__name__
            raise ModelError(
                f"model {model.name}: layer {index} keeps a cache of kind {kind}; allowed: keys and values"
            )
        layers.append(CacheLayer(keys.shape[1], keys.shape[3], values.shape[3]))
    if not layers:
        raise ModelError(
            f"model {model.name}: layers of {type(module).__name__} keep no keys and values, so it cannot be exported "
            f"with a cache; supported: {', '.join(CACHED_LAYERS)}"
        )
    return tuple(layers)


def fresh_cache() -> Any:
    """A cache of transformers with nothing in it."""
    # Without a config every layer keeps all tokens; a sliding window is then in the mask, and exact at any length.
    from transformers import DynamicCache

    return DynamicCache()


def _module(decoder: torch.nn.Module, cache: Cache) -> torch.nn.Module:
    import torch

    takes_positions = "position_ids" in inspect.signature(decoder.forward).parameters
    names = list(past_shapes(cache))

    class Cached(torch.nn.Module):
        """forward(input_ids, attention_mask, position_ids, *past) -> {"logits", "present.N.key", ...}"""

        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
        ) -> dict[str, torch.Tensor]:
            kept = fresh_cache()
            for index in range(len(names) // 2):
                kept.update(past[2 * index], past[2 * index + 1], index)
            more = {"position_ids": position_ids} if takes_positions else {}
            out: Any = self.decoder(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=kept, use_cache=True, **more
            )
            present = [value for layer in out.past_key_values.layers for value in (layer.keys, layer.values)]
            return {"logits": out.logits, **dict(zip(present_names(cache), present, strict=True))}

    return Cached().eval()
