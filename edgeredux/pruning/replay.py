"""One layer at a time is changed in a copy of a model, and what ran before that layer is not computed again.

A dense pass records the output of every unit (a block of a transformers model, a single layer of any other module) and
when it was finished. Where a layer is changed, units that were finished before it started give what they gave then:
their inputs cannot depend on it. Units that run more than once (shared weights) or whose output is changed in place
afterwards (ReLU(inplace=True)) are computed again.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from edgeredux.model import Model
from edgeredux.pruning.layers import Layer, block_of
from edgeredux.seams import Feed

_KEPT_BYTES = 1 << 30  # recorded outputs beyond this are computed again


class Replay:
    """A copy of a model, whose layers may be changed through `layer`, and its outputs on given batches."""

    def __init__(self, model: Model, layers: Sequence[Layer], feeds: Sequence[Feed]) -> None:
        """Takes one pass over `feeds`."""
        self._model = model.after(copy.deepcopy(model.module).eval().requires_grad_(False), "")
        self._feeds = [{name: torch.from_numpy(feed[name]) for name in model.input_names} for feed in feeds]
        self._names = [layer.name for layer in layers]
        self._units = list(dict.fromkeys(block_of(model, name) or name for name in self._names))
        self._left = _KEPT_BYTES
        self._passes = [self._record(feed) for feed in self._feeds]

    def layer(self, name: str) -> Layer:
        """The copy's layer of this name."""
        return Layer(name, self._model.module.get_submodule(name))

    def run(self, changed: str, index: int) -> Feed:
        """The copy's outputs on batch `index`, where nothing but the layer `changed` was changed."""
        started, finished, outputs = self._passes[index]
        start = started.get(changed, math.inf)
        known = {unit: outputs[unit] for unit, end in finished.items() if unit in outputs and end < start}
        with self._giving(known), torch.no_grad():
            found = self._model.forward(self._feeds[index])
        return {name: value.float().numpy() for name, value in found.items()}

    def computed(self, changed: str, index: int) -> list[str]:
        """The units that `run` computes."""
        started, finished, outputs = self._passes[index]
        start = started.get(changed, math.inf)
        return [unit for unit in self._units if not (unit in outputs and finished[unit] < start)]

    @contextmanager
    def _giving(self, known: dict[str, Any]) -> Iterator[None]:
        parts = [self._model.module.get_submodule(unit) for unit in known]
        for part, output in zip(parts, known.values(), strict=True):
            part.forward = _constant(output)
        try:
            yield
        finally:
            for part in parts:
                del part.forward  # the class's own again

    def _record(self, feed: dict[str, torch.Tensor]) -> tuple[dict[str, int], dict[str, int], dict[str, Any]]:
        """When each layer first started and each unit finished, and the outputs of units that can be replayed."""
        clock = itertools.count()
        started: dict[str, int] = {}
        finished: dict[str, int] = {}
        runs: dict[str, int] = {}
        outputs: dict[str, tuple[Any, list[int]]] = {}

        def on_start(name: str) -> Any:
            def note(*_: Any) -> None:
                started.setdefault(name, next(clock))

            return note

        def on_end(unit: str) -> Any:
            def keep(_: torch.nn.Module, __: Any, output: Any) -> None:
                finished[unit] = next(clock)
                runs[unit] = runs.get(unit, 0) + 1
                tensors = list(_tensors(output))
                size = sum(value.numel() * value.element_size() for value in tensors)
                if size <= self._left and runs[unit] == 1:
                    self._left -= size
                    outputs[unit] = (output, [value._version for value in tensors])

            return keep

        module = self._model.module
        handles = [module.get_submodule(name).register_forward_pre_hook(on_start(name)) for name in self._names]
        handles += [module.get_submodule(unit).register_forward_hook(on_end(unit)) for unit in self._units]
        try:
            with torch.no_grad():
                self._model.forward(feed)
        finally:
            for handle in handles:
                handle.remove()
        whole = {
            unit: output
            for unit, (output, versions) in outputs.items()
            if runs[unit] == 1 and versions == [value._version for value in _tensors(output)]
        }
        return started, finished, whole


def _constant(output: Any) -> Callable[..., Any]:
    return lambda *_, **__: output


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in an output: itself, or those in tuples, lists and mappings (a ModelOutput is one)."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
