"""The layers that read removed channels are refitted to the dense model's outputs, one after another (repair.py).

One pass of the dense model records what each reader should put out, one pass of the pruned model (walk.py) feeds every
reader what the readers refitted before it produce. Of large feature maps a fixed sample of positions is taken. A
convolution without bias gets its intercept through the BatchNorm behind it: its running mean moves by as much.
Transposed and 3-D convolutions are not refitted, nor is a layer that shares its weight with another module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgeredux.model import Model
from edgeredux.pruning.coupling import Coupling, Labels
from edgeredux.pruning.layers import KINDS, Layer
from edgeredux.pruning.repair import ridge_fit
from edgeredux.pruning.walk import Inputs, walk
from edgeredux.seams import Feed, Progress

# Positions a fit is made from: four for each weight of an output row, and never a noisy few.
_LEAST_POSITIONS = 8192
_POSITIONS_PER_INPUT = 4


@dataclass(frozen=True)
class _Sampled(Layer):
    """A layer whose inputs are looked at in at most `limit` positions a batch, always the same ones."""

    limit: int

    def positions(self, given: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """See Layer."""
        found = super().positions(given, real)
        return found[:, sample(found.shape[1], self.limit)]


def sample(count: int, limit: int) -> torch.Tensor:
    """`limit` of `count` positions without repetition, the same for the same count."""
    if count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(count))[:limit].sort().values


def shared_weights(module: torch.nn.Module) -> set[str]:
    """Modules whose weight is another module's too, as a head tied to the embedding: what fits one spoils the other."""
    homes: dict[int, list[str]] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        homes.setdefault(id(value), []).append(name.rpartition(".")[0])
    return {name for names in homes.values() if len(names) > 1 for name in names}


def refit_readers(
    dense: Model,
    student: Model,
    coupling: Coupling,
    gone: Labels,
    feeds: Sequence[Feed],
    ridge: float,
    progress: Progress,
) -> int:
    """Refit every reader of a removed channel, in place in `student`; how many were. Raises DataError, ModelError."""
    layers: dict[str, _Sampled] = {}
    shared = shared_weights(student.module)
    for port in coupling.readers:
        part = student.module.get_submodule(port.module)
        if isinstance(part, KINDS) and port.module not in shared and np.isin(port.labels, gone).any():
            wide = Layer(port.module, part).matrix().shape[1]
            rows = max(_LEAST_POSITIONS, _POSITIONS_PER_INPUT * wide)
            layers.setdefault(port.module, _Sampled(port.module, part, -(-rows // max(1, len(feeds)))))
    if not layers:
        return 0
    out_dims = {port.module: port.place for port in coupling.writers}
    kept = {name: torch.from_numpy(np.flatnonzero(~np.isin(coupling.places[out_dims[name]], gone))) for name in layers}
    wanted = _dense_outputs(dense, layers, kept, feeds)

    def visit(layer: Layer, inputs: Inputs) -> None:
        _refit(student, layer, inputs, wanted.pop(layer.name), coupling.following.get(layer.name), ridge)

    walk(student, list(layers.values()), feeds, visit, progress)
    return len(layers)


def _refit(
    student: Model, layer: Layer, inputs: Inputs, wanted: list[torch.Tensor], norm_name: str | None, ridge: float
) -> None:
    bias = layer.module.bias
    norm: Any = student.module.get_submodule(norm_name) if norm_name and bias is None else None
    weight = layer.matrix()
    tall = len(weight) // layer.groups
    fitted, intercepts = [], []
    for group in range(layer.groups):
        rows = slice(group * tall, (group + 1) * tall)
        solved, intercept = ridge_fit(
            [part[group] for part in inputs],
            [part[:, rows] for part in wanted],
            weight[rows],
            ridge,
            intercept=bias is not None or norm is not None,
            where=f"channels: {layer.name}",
        )
        fitted.append(solved)
        intercepts.append(intercept)
    layer.store(torch.cat(fitted).float())
    if intercepts[0] is not None:
        made = torch.cat([value for value in intercepts if value is not None]).float()
        if isinstance(bias, torch.Tensor):
            bias.copy_(made)
        else:
            norm.running_mean.sub_(made)


def _dense_outputs(
    dense: Model, layers: dict[str, _Sampled], kept: dict[str, torch.Tensor], feeds: Sequence[Feed]
) -> dict[str, list[torch.Tensor]]:
    """Outputs of each layer's first run in the dense model, at the sampled positions, the kept channels of them."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    seen: set[str] = set()
    real: torch.Tensor | None = None

    def hook(name: str) -> Any:
        def take(part: torch.nn.Module, _: object, made: torch.Tensor) -> None:
            if name in seen:
                return
            seen.add(name)
            spatial = len(getattr(part, "kernel_size", ()))
            rows = (made.movedim(-spatial - 1, -1) if spatial else made).reshape(
                -1, made.shape[made.dim() - spatial - 1]
            )
            if not spatial and real is not None and len(real) == len(rows) and not bool(real.all()):
                rows = rows[real]
            found[name].append(rows[sample(len(rows), layers[name].limit)][:, kept[name]].clone())

        return take

    handles = [dense.module.get_submodule(name).register_forward_hook(hook(name)) for name in layers]
    try:
        with torch.no_grad():
            for feed in feeds:
                seen.clear()
                tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
                mask = tensors.get("attention_mask")
                real = None if mask is None else mask.bool().reshape(-1)
                dense.forward(tensors)
    finally:
        for handle in handles:
            handle.remove()
    return found
