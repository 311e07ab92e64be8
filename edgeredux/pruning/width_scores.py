"""Importance of a dimension of the residual stream, summed over all that writes or reads it; larger = keep.

minitron     over samples b and norms l:  sum_l sqrt(sum_b (mean_s |LN_l(X)_{b,s,i}|)^2)  (Muralidharan et al. 2024,
             arXiv 2407.14679, section 2.2: embedding channels by the outputs of all LayerNorms, mean over the sequence
             and L2 over the batch); padding is left out
others       activation, magnitude, taylor, random and the methods that score single weights: channels_scores.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgeredux.errors import ModelError
from edgeredux.model import Model
from edgeredux.pruning.channels_scores import OWN, onto_units, unit_scores
from edgeredux.pruning.coupling import Coupling, Group, Labels
from edgeredux.pruning.coupling_trace import owner_of
from edgeredux.pruning.methods import METHODS
from edgeredux.seams import Feed

IMPORTANCE = tuple(dict.fromkeys(("minitron", *(name for name in OWN if name != "bn_scale"), *METHODS)))


def dimension_scores(
    model: Model, found: Coupling, streams: Sequence[Group], importance: str, feeds: Sequence[Feed], seed: int
) -> list[torch.Tensor]:
    """[dimensions] of each stream, float64. Raises ModelError for NaN or infinite activations."""
    if importance != "minitron":
        scores = unit_scores(model, found, streams, importance, feeds, seed)
    else:
        outputs = _norm_outputs(model, norms(model, found, streams), feeds)
        scores = [
            torch.stack([onto_units(stream.units, labels, value) for labels, value in outputs]).sum(0)
            for stream in streams
        ]
    if not all(bool(torch.isfinite(score).all()) for score in scores):
        raise ModelError(f"width: the {importance} scores are NaN or infinite")
    return scores


def norms(model: Model, found: Coupling, streams: Sequence[Group]) -> dict[str, Labels]:
    """Modules that normalise a stream over its whole width, with the labels of their outputs."""
    units = {int(label) for stream in streams for label in stream.units}
    return {
        owner_of(node): labels
        for node, labels in found.blended
        if units.issuperset(labels.tolist()) and owner_of(node) and not list(_module(model, node).children())
    }


def _module(model: Model, node: torch.fx.Node) -> torch.nn.Module:
    return model.module.get_submodule(owner_of(node))


def _norm_outputs(model: Model, names: dict[str, Labels], feeds: Sequence[Feed]) -> list[tuple[Labels, torch.Tensor]]:
    sums = {name: torch.zeros(len(labels), dtype=torch.float64) for name, labels in names.items()}
    mask: torch.Tensor | None = None

    def hook(name: str) -> Any:
        def see(_: torch.nn.Module, given: Any, made: torch.Tensor) -> None:
            value = made.double().abs()
            value = value.reshape(len(value), -1, value.shape[-1])
            if mask is not None and mask.shape == value.shape[:2]:
                real = mask[..., None]
                mean = (value * real).sum(1) / real.sum(1).clamp_min(1)
            else:
                mean = value.mean(1)
            sums[name] += mean.square().sum(0)

        return see

    handles = [model.module.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        with torch.no_grad():
            for feed in feeds:
                tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
                mask = tensors.get("attention_mask")
                model.forward(tensors)
    finally:
        for handle in handles:
            handle.remove()
    return [(names[name], value.sqrt()) for name, value in sums.items()]
