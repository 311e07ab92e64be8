"""The layers of a model being pruned, one after another, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from edgeredux.errors import DataError
from edgeredux.model import Model
from edgeredux.pruning.layers import Layer
from edgeredux.pruning.methods import Method, Statistics
from edgeredux.pruning.scores import statistics_without_inputs
from edgeredux.pruning.statistics import Collector, relative_error, towards
from edgeredux.pruning.walk import Inputs, stops
from edgeredux.seams import ReduceContext
from edgeredux.sparsity.patterns import Pattern

_MINIMUM_POSITIONS = 16
# Of the Gram matrix' mean diagonal; less follows the calibration data too closely (docs/decisions/reduction.md).
_REFERENCE_DAMPING = 0.3


@dataclass(frozen=True)
class Work:
    """The layers of the student, and how they are to be pruned."""

    layers: Sequence[Layer]
    method: Method
    pattern: Pattern

    def zero(
        self,
        student: Model,
        removed: Mapping[str, int],
        context: ReduceContext,
        dense: tuple[Model, Sequence[Layer]] | None,
    ) -> dict[str, float]:
        """Prune every layer; relative output errors by layer where the Gram matrices were taken."""
        errors: dict[str, float] = {}
        if self.method.needs in ("weights", "gradients"):
            names = [layer.name for layer in self.layers]
            known = statistics_without_inputs(student, names, self.method, context.calibration, context.seed)
            for place, layer in enumerate(self.layers):
                context.progress(layer.name, place, len(self.layers))
                self.solve(layer, known[layer.name].split(layer.groups), removed[layer.name])
            return errors
        collector = Collector(self.method.needs, context.processes)
        twin = stops(dense[0], dense[1], context.calibration) if dense is not None else None
        for layer, inputs in stops(student, self.layers, context.calibration, context.progress):
            given = None
            if twin is not None:
                other, given = next(twin)
                assert other.name == layer.name
            error = self.visit(layer, inputs, collector, removed[layer.name], given)
            if error is not None:
                errors[layer.name] = error
            del inputs, given
        return errors

    def visit(
        self, layer: Layer, inputs: Inputs, collector: Collector, removed: int, dense: Inputs | None = None
    ) -> float | None:
        """Prune one layer by its inputs; the relative output error where the Gram matrix was taken.

        `dense`: what the layer's inputs are in the dense model, whose output is then the one to keep. Raises DataError
        where there are too few positions.
        """
        positions = collector.positions(inputs, layer.name)
        if positions < _MINIMUM_POSITIONS:
            raise DataError(
                f"prune: {positions} calibration positions at {layer.name} are too few; at least "
                f"{_MINIMUM_POSITIONS} are needed, so give more texts"
            )
        before, known = layer.matrix().clone(), collector.take(inputs)
        if dense is not None:
            layer.store(_towards(before, known, collector.cross(dense, inputs)))
        self.solve(layer, known, removed)
        return relative_error(before, layer.matrix(), known)

    def solve(self, layer: Layer, known: Sequence[Statistics], removed: int) -> None:
        """Prune one layer; the row groups of a grouped convolution one by one, each with its own inputs."""
        parts = layer.matrix().chunk(layer.groups)
        solved = []
        for group, (part, item) in enumerate(zip(parts, known, strict=True)):
            count = removed
            if layer.groups > 1 and self.pattern.compete == "matrix" and not self.pattern.window:
                count = removed * (group + 1) // layer.groups - removed * group // layer.groups
            solved.append(self.method.solve(part, item, self.pattern, count))
        layer.store(torch.cat(solved))


def _towards(weight: torch.Tensor, known: Sequence[Statistics], cross: Sequence[torch.Tensor]) -> torch.Tensor:
    parts = []
    for part, item, other in zip(weight.chunk(len(known)), known, cross, strict=True):
        assert item.gram is not None
        parts.append(towards(part, item.gram, other, _REFERENCE_DAMPING))
    return torch.cat(parts)
