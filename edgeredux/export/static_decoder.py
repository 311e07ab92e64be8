"""A decoder whose shapes are all fixed, as a TFLite file with the signatures `prefill` and `decode`.

The last `length` tokens' keys and values come in and go out. They stand at the right end of their tensors, so the
distance of two places is that of their tokens: windows and positions hold as they are, and layers may keep as many
heads as they like.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edgeredux import loading
from edgeredux.caching import Cache, static_shapes
from edgeredux.decoding import cache_of, fresh_cache
from edgeredux.errors import ModelError, one_line
from edgeredux.export.flat import prepared


class StaticDecoder(torch.nn.Module):
    """forward(tokens [1, n], input_pos [1, n], mask [1, length + n], kv_cache_k_0, ...) -> logits, the cache.

    Whole numbers are int32; `mask` is 1 for the tokens seen, these with them; `logits` [1, vocabulary] are those of the
    last token.
    """

    def __init__(self, decoder: torch.nn.Module, cache: Cache, length: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.length = length
        self._names = list(static_shapes(cache, length))
        self._positions = "position_ids" in inspect.signature(decoder.forward).parameters

    def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors by name."""
        kept = fresh_cache()
        for index in range(len(self._names) // 2):
            kept.update(given[self._names[2 * index]], given[self._names[2 * index + 1]], index)
        more = {"position_ids": given["input_pos"]} if self._positions else {}
        out: Any = self.decoder(
            input_ids=given["tokens"],
            attention_mask=given["mask"],
            past_key_values=kept,
            use_cache=True,
            logits_to_keep=1,
            **more,
        )
        layers = [value for layer in out.past_key_values.layers for value in (layer.keys, layer.values)]
        found = {name: value[:, :, -self.length :] for name, value in zip(self._names, layers, strict=True)}
        return {"logits": out.logits[:, -1], **found}


def convert(folder: str, out: str, tokens: int, length: int, tried: Sequence[Sequence[int]], count: int) -> Any:
    """In a child: write the file of a Hugging Face folder's decoder, `tokens` at a time in prefill.

    The answer: for each prompt of `tried` the `count` tokens that PyTorch says greedily. Raises ModelError.
    """
    import litert_torch

    model = loading.load(folder, task="causal-lm", max_length=length)
    cache = cache_of(model)
    wrapped = StaticDecoder(model.module, cache, length).eval()

    def example(size: int) -> dict[str, torch.Tensor]:
        past = {name: torch.zeros(shape) for name, shape in static_shapes(cache, length).items()}
        whole = {"tokens": (1, size), "input_pos": (1, size), "mask": (1, length + size)}
        return {**{name: torch.ones(shape, dtype=torch.int32) for name, shape in whole.items()}, **past}

    with prepared(model.module, eager_attention=True):
        try:
            signed = litert_torch.signature("prefill", wrapped, sample_kwargs=example(tokens))
            converted = signed.signature("decode", wrapped, sample_kwargs=example(1)).convert()
        except Exception as problem:
            raise ModelError(
                one_line(f"model {model.name}: litert-torch cannot convert it: {problem}", 400)
            ) from problem
    converted.export(out)
    module: Any = model.module
    return [_greedy(module, prompt, count) for prompt in tried] if Path(out).is_file() else None


def _greedy(module: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest next token again and again, the whole text anew each time: no cache has a part in it."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            logits = module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(int(logits.argmax()))
    return ids[len(prompt) :]
