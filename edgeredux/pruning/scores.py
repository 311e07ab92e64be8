"""One score for every weight of the dense model, larger = more is lost with it, for whoever sums them over units."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeredux.model import Model
from edgeredux.processes import ALONE, Processes
from edgeredux.pruning.gradients import gradients
from edgeredux.pruning.layers import Layer
from edgeredux.pruning.methods import Method, Statistics
from edgeredux.pruning.statistics import Collector
from edgeredux.pruning.walk import Inputs, walk
from edgeredux.seams import Feed, Progress, silent


def element_scores(
    model: Model,
    names: Sequence[str],
    method: Method,
    feeds: Sequence[Feed],
    seed: int,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> dict[str, torch.Tensor]:
    """Scores of the named layers' matrices, [outputs, inputs of a group] each, float32, all layers dense.

    Raises DataError without feeds where the method needs them, ModelError for NaN activations or gradients.
    """
    parts = [Layer(name, model.module.get_submodule(name)) for name in names]
    if method.needs in ("norms", "gram"):
        collector = Collector(method.needs, processes)
        found: dict[str, torch.Tensor] = {}

        def visit(layer: Layer, inputs: Inputs) -> None:
            collector.positions(inputs, layer.name)
            found[layer.name] = score(method, layer.matrix(), collector.take(inputs))

        walk(model, parts, feeds, visit, progress)
        return {name: found[name] for name in names}
    known = statistics_without_inputs(model, names, method, feeds, seed)
    return {layer.name: score(method, layer.matrix(), [known[layer.name]]) for layer in parts}


def statistics_without_inputs(
    model: Model, names: Sequence[str], method: Method, feeds: Sequence[Feed], seed: int
) -> dict[str, Statistics]:
    """What a method that looks at weights or gradients knows of each layer; a seed of its own for each."""
    slopes = gradients(model, names, feeds, seed) if method.needs == "gradients" else {}
    return {
        name: Statistics(
            gradient=slopes[name][0] if slopes else None,
            fisher=slopes[name][1] if slopes else None,
            seed=seed * 1_000_003 + place,
        )
        for place, name in enumerate(names)
    }


def score(method: Method, weight: torch.Tensor, known: Sequence[Statistics]) -> torch.Tensor:
    """The method's scores of a matrix whose row groups have one Statistics each."""
    if len(known) == 1:
        return method.score(weight, known[0])
    parts = weight.chunk(len(known))
    return torch.cat([method.score(part, item) for part, item in zip(parts, known, strict=True)])
