"""Importance of channels: one score a unit of each group, larger = keep.

activation   sum over readers of E[x_c^2] * ||W[:, c]||^2: the energy that channel c brings to what reads it (Wanda's
             |W| * ||X||, Sun et al. 2023, squared and summed)
magnitude    squared L2 norm of all weights that go with the unit: the Euclidean projection onto fewer channels
taylor       mean over samples of (sum over readers and positions of x_c * dL/dx_c)^2 (Molchanov et al. 2019, eq. 8),
             L as in gradients.py
bn_scale     mean |gamma| of the BatchNorms a channel passes (Liu et al. 2017, Network Slimming)
random       the baseline
any other    a method that scores single weights (methods.py: fisher, wanda, sparsegpt, alps), summed over what the
             readers read
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from edgeredux.errors import DataError, ModelError
from edgeredux.model import Model
from edgeredux.pruning.coupling import Coupling, Group, Labels, Port
from edgeredux.pruning.gradients import objective
from edgeredux.pruning.layers import KINDS
from edgeredux.pruning.methods import method
from edgeredux.pruning.scores import element_scores
from edgeredux.seams import Feed

OWN = ("activation", "magnitude", "taylor", "bn_scale", "random")


def unit_scores(
    model: Model, coupling: Coupling, groups: Sequence[Group], importance: str, feeds: Sequence[Feed], seed: int
) -> list[torch.Tensor]:
    """[units] of each group, float64. Raises ModelError for NaN activations, DataError without data."""
    readers = {port.module: port for group in groups for port in group.readers}
    if importance == "random":
        generator = torch.Generator().manual_seed(seed)
        return [torch.rand(len(group.units), generator=generator, dtype=torch.float64) for group in groups]
    if importance == "magnitude":
        return [_magnitude(model, coupling, group) for group in groups]
    if importance == "bn_scale":
        return [_bn_scale(model, group) for group in groups]
    if importance == "taylor":
        return _taylor(model, groups, readers, feeds, seed)
    if importance == "activation":
        squares = _mean_squares(model, readers, feeds)
        channels = {name: squares[name] * column_energy(model, port) for name, port in readers.items()}
    else:
        names = [name for name in readers if isinstance(model.module.get_submodule(name), KINDS)]
        found = element_scores(model, names, method(importance, "channels"), feeds, seed)
        channels = {name: _by_channel(model, readers[name], found[name].double()) for name in names}
    return [_summed(group, channels) for group in groups]


def unscored(model: Model, group: Group, importance: str) -> str | None:
    """Why this importance cannot score a group, None when it can."""
    if importance == "bn_scale" and not group.norms:
        return "its channels pass no BatchNorm with a scale; choose another importance"
    if importance not in OWN:
        for port in group.readers:
            part = model.module.get_submodule(port.module)
            if not isinstance(part, KINDS):
                return f"importance {importance} cannot score {port.module}, a {type(part).__name__}"
    return None


def onto_units(units: Labels, labels: Labels, values: torch.Tensor) -> torch.Tensor:
    """Sum of `values` [..., channels] over the channels of each unit: [..., units], float64."""
    place = {int(label): index for index, label in enumerate(units)}
    at = [(channel, place[label]) for channel, label in enumerate(labels.tolist()) if label in place]
    out = torch.zeros(*values.shape[:-1], len(units), dtype=torch.float64)
    if at:
        channels, index = torch.tensor(at).T
        out.index_add_(-1, index, values[..., channels].double())
    return out


def channel_axis(module: torch.nn.Module, rank: int) -> int:
    """Where the channels of a Linear's or convolution's input are."""
    sizes = getattr(module, "kernel_size", None)
    return rank - 1 if sizes is None else rank - len(sizes) - 1


def column_energy(model: Model, port: Port) -> torch.Tensor:
    """Squared norm of what a reader multiplies each of its input channels with, [channels], float64."""
    part = model.module.get_submodule(port.module)
    weight = model.module.get_parameter(port.place[0]).detach().double()
    groups = int(getattr(part, "groups", 1))
    if port.place[1] == 0:  # transposed convolution or Conv1D: [inputs, outputs, ...]
        return weight.square().flatten(1).sum(1)
    return weight.square().reshape(groups, len(weight) // groups, weight.shape[1], -1).sum((1, 3)).flatten()


def _summed(group: Group, channels: dict[str, torch.Tensor]) -> torch.Tensor:
    parts = [onto_units(group.units, port.labels, channels[port.module]) for port in group.readers]
    return torch.stack(parts).sum(0)


def _by_channel(model: Model, port: Port, scores: torch.Tensor) -> torch.Tensor:
    """Scores of a matrix [outputs, inputs of a group], kernel positions channel by channel, summed by channel."""
    groups = int(getattr(model.module.get_submodule(port.module), "groups", 1))
    width = len(port.labels) // groups
    return scores.reshape(groups, len(scores) // groups, width, -1).sum((1, 3)).flatten()


def _magnitude(model: Model, coupling: Coupling, group: Group) -> torch.Tensor:
    total = torch.zeros(len(group.units), dtype=torch.float64)
    counted: set[tuple[int, int]] = set()
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    for (name, dim), labels in coupling.places.items():
        weight = parameters.get(name)
        if weight is None or (id(weight), dim) in counted:  # a buffer, or tied to one that is counted
            continue
        counted.add((id(weight), dim))
        squares = weight.detach().double().square().movedim(dim, 0)
        total += onto_units(group.units, labels, squares.reshape(len(squares), -1).sum(1))
    return total


def _bn_scale(model: Model, group: Group) -> torch.Tensor:
    parts = [
        onto_units(group.units, labels, model.module.get_parameter(name).detach().abs()) for name, labels in group.norms
    ]
    counts = [onto_units(group.units, labels, torch.ones(len(labels))) for _, labels in group.norms]
    return torch.stack(parts).sum(0) / torch.stack(counts).sum(0).clamp_min(1)


def _hooked(
    model: Model, names: Sequence[str], see: Callable[[str, torch.Tensor], None]
) -> list[torch.utils.hooks.RemovableHandle]:
    def hook(name: str) -> Any:
        def take(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            if not bool(torch.isfinite(given[0]).all()):
                raise ModelError(f"pruning: the activations at {name} are NaN or infinite on the calibration data")
            see(name, given[0])

        return take

    return [model.module.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]


def _mean_squares(model: Model, readers: dict[str, Port], feeds: Sequence[Feed]) -> dict[str, torch.Tensor]:
    if not feeds:
        raise DataError("pruning: there is no calibration data")
    sums = {name: torch.zeros(len(port.labels), dtype=torch.float64) for name, port in readers.items()}
    counts = dict.fromkeys(readers, 0)

    def see(name: str, value: torch.Tensor) -> None:
        axis = channel_axis(model.module.get_submodule(name), value.dim())
        flat = value.detach().movedim(axis, 0).flatten(1)
        sums[name] += flat.double().square().sum(1)
        counts[name] += flat.shape[1]

    handles = _hooked(model, list(readers), see)
    try:
        with torch.no_grad():
            for feed in feeds:
                model.forward({name: torch.from_numpy(value) for name, value in feed.items()})
    finally:
        for handle in handles:
            handle.remove()
    return {name: value / max(1, counts[name]) for name, value in sums.items()}


def _taylor(
    model: Model, groups: Sequence[Group], readers: dict[str, Port], feeds: Sequence[Feed], seed: int
) -> list[torch.Tensor]:
    if not feeds:
        raise DataError("pruning: there is no calibration data")
    student = model.after(copy.deepcopy(model.module).eval().requires_grad_(True), "")
    seen: list[tuple[str, torch.Tensor]] = []
    _hooked(student, list(readers), lambda name, value: seen.append((name, value)))
    totals = [torch.zeros(len(group.units), dtype=torch.float64) for group in groups]
    generator = torch.Generator().manual_seed(seed)
    samples = 0
    for feed in feeds:
        seen.clear()
        with torch.enable_grad():
            loss = objective(student, {name: torch.from_numpy(value) for name, value in feed.items()}, generator)
            slopes = torch.autograd.grad(loss, [value for _, value in seen], allow_unused=True)
        count = len(next(iter(feed.values())))
        moved: dict[str, torch.Tensor] = {}
        for (name, value), slope in zip(seen, slopes, strict=True):
            if slope is None:
                continue
            if not bool(torch.isfinite(slope).all()):
                raise ModelError(f"pruning: the gradients at {name} are NaN or infinite")
            axis = channel_axis(student.module.get_submodule(name), value.dim())
            # The loss is a mean over samples; times their number it is each sample's own.
            effect = (value.detach().double() * slope.double() * count).movedim(axis, -1)
            effect = effect.reshape(count, -1, effect.shape[-1]).sum(1)
            moved[name] = moved.get(name, torch.zeros_like(effect)) + effect
        for group, total in zip(groups, totals, strict=True):
            parts = [
                onto_units(group.units, port.labels, moved[port.module])
                for port in group.readers
                if port.module in moved
            ]
            if parts:
                total += torch.stack(parts).sum(0).square().sum(0)
        samples += count
    return [total / max(1, samples) for total in totals]
