"""After the residual stream lost dimensions: norms and the layers that read it say again what the dense ones do.

The calibration data goes through the dense and the narrower model in one lockstep pass (walk.py). A norm, whose
statistics now come from fewer dimensions, gets a scale and, where it has one, an offset a dimension by least squares:

    min over a_i, c_i  E (LN(X)_i - a_i * LN'(X')_i - c_i)^2

A Linear that reads the stream is refitted as a whole (repair.py). A head tied to the embedding stays as it is, and so
does a pooler or classifier where there are too few samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch

from edgeredux.model import Model
from edgeredux.pruning.channels_repair import shared_weights
from edgeredux.pruning.coupling import Coupling, Labels
from edgeredux.pruning.coupling_trace import owner_of
from edgeredux.pruning.layers import Layer
from edgeredux.pruning.places import LINEAR
from edgeredux.pruning.repair import MINIMUM_POSITIONS, ridge_fit
from edgeredux.pruning.walk import Inputs, stops
from edgeredux.seams import Feed, Progress


def refit(
    dense: Model,
    student: Model,
    found: Coupling,
    gone: Labels,
    feeds: Sequence[Feed],
    ridge: float,
    progress: Progress,
) -> int:
    """Refit in place in `student`; how many modules were looked at. Raises DataError, ModelError."""
    kept: dict[str, torch.Tensor] = {}
    for node, labels in found.blended:
        if np.isin(labels, gone).any() and _is_norm(student.module.get_submodule(owner_of(node))):
            kept[owner_of(node)] = _left(labels, gone)
    shared = shared_weights(student.module)
    rows = {port.module: port.labels for port in found.writers}
    for port in found.readers:
        part = student.module.get_submodule(port.module)
        if isinstance(part, LINEAR) and port.module not in shared and np.isin(port.labels, gone).any():
            kept[port.module] = _left(rows[port.module], gone)
    samples = sum(len(next(iter(feed.values()))) for feed in feeds)
    order = [name for name, _ in student.module.named_modules() if name in kept]

    def layers(model: Model) -> list[Layer]:
        return [Layer(name, model.module.get_submodule(name)) for name in order]

    with (
        closing(stops(dense, layers(dense), feeds)) as wanted,
        closing(stops(student, layers(student), feeds, progress)) as made,
    ):
        for (original, seen), (layer, inputs) in zip(wanted, made, strict=True):
            # Not by calling the module, whose hook would stop here again.
            target = [original.module.forward(part[0])[:, kept[layer.name]] for part in seen]
            if isinstance(layer.module, LINEAR):
                if sum(part.shape[1] for part in inputs) == samples < MINIMUM_POSITIONS:
                    continue  # a pooler or a classifier, which reads one position of each of too few samples
                _refit_linear(layer, inputs, target, ridge)
            else:
                _refit_norm(layer.module, [part[0] for part in inputs], target)
    return len(order)


def _is_norm(part: torch.nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 1 and not list(part.children())


def _left(labels: Labels, gone: Labels) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(~np.isin(labels, gone)))


def _refit_linear(layer: Layer, inputs: Inputs, target: list[torch.Tensor], ridge: float) -> None:
    bias = layer.module.bias
    weight, intercept = ridge_fit(
        [part[0] for part in inputs], target, layer.matrix(), ridge, intercept=bias is not None, where="width"
    )
    layer.store(weight.float())
    if intercept is not None:
        assert isinstance(bias, torch.Tensor)
        bias.copy_(intercept)


def _refit_norm(norm: Any, inputs: Sequence[torch.Tensor], target: Sequence[torch.Tensor]) -> None:
    bias, weight = getattr(norm, "bias", None), norm.weight.clone()
    x = torch.cat([norm.forward(part).double() for part in inputs])
    y = torch.cat(list(target)).double()
    if bias is not None:
        x = x - bias
    x_mean, y_mean = (x.mean(0), y.mean(0)) if bias is not None else (0.0, 0.0)
    energy = (x - x_mean).square().sum(0)
    scale = torch.where(energy > 0, ((x - x_mean) * (y - y_mean)).sum(0) / energy.clamp_min(1e-30), 1.0)
    # Gemma multiplies with 1 + weight, others with weight: what a weight of zero leaves tells.
    norm.weight.zero_()
    silent = norm.forward(inputs[0]) - (bias if bias is not None else 0)
    one = 1.0 if bool(silent.any()) else 0.0
    norm.weight.copy_(scale * (weight + one) - one)
    if bias is not None:
        bias.copy_(y_mean - scale * x_mean)
