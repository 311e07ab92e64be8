"""A model in the form that exporters trace: tensors in by position, a tuple of tensors out, no key-value cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgeredux.model import Model


class Flat(torch.nn.Module):
    """Calls the model with its inputs by position; outputs in the order of output_names."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.wrapped = model.module
        self._model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors of Model.forward."""
        outputs = self._model.forward(dict(zip(self._model.input_names, inputs, strict=True)))
        return tuple(outputs[name] for name in self._model.output_names)


@contextmanager
def prepared(module: torch.nn.Module, eager_attention: bool) -> Iterator[None]:
    """The module while it is traced, given back as it was.

    A decoder does without its key-value cache, so that the graph holds no cache that nobody reads. With
    `eager_attention` a transformers module computes attention by plain matrix products.
    """
    module = getattr(module, "decoder", module) if not hasattr(module, "config") else module
    config = getattr(module, "config", None)
    cache = getattr(config, "use_cache", None)
    attention = getattr(config, "_attn_implementation", None)
    choose = getattr(module, "set_attn_implementation", None)
    switch = eager_attention and callable(choose) and attention not in (None, "eager")
    try:
        if cache is not None:
            config.use_cache = False  # type: ignore[union-attr]
        if switch:
            choose("eager")  # type: ignore[misc]
        yield
    finally:
        if cache is not None:
            config.use_cache = cache  # type: ignore[union-attr]
        if switch:
            choose(attention)  # type: ignore[misc]
