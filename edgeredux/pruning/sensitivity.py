"""Sensitivity scan: each layer alone is pruned to each level of zeros, and it is seen what that does to the model.

As Distiller's sensitivity analysis, with a loss against the dense model instead of labels. Statistics come from all
calibration batches in one pass; loss and quality from the gauge's samples, of which only what follows the pruned layer
is computed again (replay.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from edgeredux.closeness import Closeness, Gauge
from edgeredux.model import Model
from edgeredux.pruning.groups import Group
from edgeredux.pruning.layers import Layer
from edgeredux.pruning.methods import Method, Statistics
from edgeredux.pruning.replay import Replay
from edgeredux.pruning.scores import score, statistics_without_inputs
from edgeredux.pruning.statistics import Collector, relative_error
from edgeredux.pruning.walk import Inputs, walk
from edgeredux.pruning.work import Work
from edgeredux.seams import Feed, Progress
from edgeredux.sensitivity_table import LayerCurve
from edgeredux.sparsity.counts import count_of, smallest
from edgeredux.sparsity.patterns import Pattern


class Scan(Protocol):
    """What is tried on a layer."""

    @property
    def method(self) -> Method:
        """What scores, and perhaps refits."""

    def levels(self, layer: Layer) -> list[tuple[int, float]]:
        """How many go and their exact share at each level, rising; equal levels once, empty ones never."""

    def prune(self, layer: Layer, known: Sequence[Statistics], count: int) -> None:
        """Take `count` out of the layer, in place."""


@dataclass(frozen=True)
class WeightScan:
    """Weights in a pattern, at every share of `grid`; n:m has one level of its own."""

    method: Method
    pattern: Pattern
    grid: tuple[float, ...]

    def levels(self, layer: Layer) -> list[tuple[int, float]]:
        """See Scan; counts are steps of the pattern."""
        rows, columns = layer.matrix().shape
        grid = self.grid if self.pattern.fixed_zeros is None else (self.pattern.fixed_zeros,)
        counts = sorted({self.pattern.removed(rows, columns, share) for share in grid} - {0})
        return [(count, count / self.pattern.steps(rows, columns)) for count in counts]

    def prune(self, layer: Layer, known: Sequence[Statistics], count: int) -> None:
        """See Scan."""
        Work([layer], self.method, self.pattern).solve(layer, known, count)


@dataclass(frozen=True)
class UnitScan:
    """FFN neurons or attention heads, whose columns of the reading Linear become zero: as if cut out, not refitted.

    A unit's score is the sum of its columns' scores; the rows that make it are not looked at.
    """

    method: Method
    groups: dict[str, Group]  # by reading layer
    grid: tuple[float, ...]

    def levels(self, layer: Layer) -> list[tuple[int, float]]:
        """See Scan; counts are units, of which at least one stays."""
        units = self.groups[layer.name].units
        counts = sorted({min(count_of(share, units), units - 1) for share in self.grid} - {0})
        return [(count, count / units) for count in counts]

    def prune(self, layer: Layer, known: Sequence[Statistics], count: int) -> None:
        """See Scan."""
        group, weight = self.groups[layer.name], layer.matrix()
        scores = score(self.method, weight, known).sum(0)[group.columns].sum(1)
        gone = smallest(scores, count).nonzero()[:, 0]
        layer.store(weight.index_fill(1, group.columns[gone].flatten(), 0.0))


def scan(
    model: Model,
    layers: Sequence[Layer],
    what: Scan,
    gauge: Gauge,
    feeds: Sequence[Feed],
    seed: int,
    progress: Progress,
) -> dict[str, LayerCurve]:
    """The curves of `layers`, modules of `model`, which stays as it is; calibrated on `feeds`, judged by `gauge`.

    Raises DataError without feeds, ModelError for NaN or infinite activations and outputs.
    """
    names = [layer.name for layer in layers]
    found: dict[str, LayerCurve] = {}
    with torch.no_grad():
        replay = Replay(model, layers, gauge.feeds)
        without = what.method.needs in ("weights", "gradients")
        known = statistics_without_inputs(model, names, what.method, feeds, seed) if without else {}
        collector = None if without else Collector(what.method.needs)
        products = collector if collector is not None and what.method.needs == "gram" else Collector("gram")

        def visit(layer: Layer, inputs: Inputs) -> None:
            progress(layer.name, len(found), len(layers))
            here = known[layer.name].split(layer.groups) if collector is None else collector.take(inputs)
            found[layer.name] = _curve(layer, products.take(inputs), here, what, gauge, replay)

        walk(model, layers, feeds, visit)
    progress("sensitivity", len(layers), len(layers))
    return {name: found[name] for name in names}


def _curve(
    layer: Layer, products: Sequence[Statistics], known: Sequence[Statistics], what: Scan, gauge: Gauge, replay: Replay
) -> LayerCurve:
    """`products`: the Gram matrices of the layer's inputs, which give its own error at every level."""
    trial, weight = replay.layer(layer.name), layer.matrix().clone()
    levels: list[tuple[float, Closeness, float | None]] = []
    for count, share in what.levels(layer):
        trial.store(weight)
        what.prune(trial, known, count)
        error = relative_error(weight, trial.matrix(), products)
        levels.append((share, gauge.of(lambda index: replay.run(layer.name, index)), error))
    trial.store(weight)
    return LayerCurve(
        layer.name,
        weight.numel(),
        tuple(share for share, _, _ in levels),
        tuple(near.loss for _, near, _ in levels),
        tuple(near.quality for _, near, _ in levels),
        tuple(error for _, _, error in levels),
        tuple(near.task_loss for _, near, _ in levels if near.task_loss is not None),
    )
