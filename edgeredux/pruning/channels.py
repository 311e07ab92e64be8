"""The step `channels`: channels of convolutions and features of Linears go, in any nn.Module, and shapes shrink.

What must go together is traced through the model's graph (coupling.py), what is left is proven to be the dense module
with those channels masked (coupling_cut.py), then the layers that read removed channels are refitted to the dense
model's outputs (channels_repair.py). Layers that cannot lose channels are left alone, and the change says why.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass as plain
from fnmatch import fnmatch
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.errors import DataError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.channels_allocation import choose
from edgeredux.pruning.channels_repair import refit_readers
from edgeredux.pruning.channels_scores import OWN, unit_scores, unscored
from edgeredux.pruning.coupling import Coupling, Group, Labels
from edgeredux.pruning.coupling_cut import cut, prove
from edgeredux.pruning.coupling_trace import Graph, coupling, trace
from edgeredux.pruning.methods import METHODS, among
from edgeredux.seams import ReduceContext

_KINDS = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
_IMPORTANCE = tuple(dict.fromkeys((*OWN, *METHODS)))
# Layers left alone that the change's line names; its details name all.
_SHOWN = 3


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Channels:
    """Remove the share `share` of the channels of every group of coupled channels, or of all together.

    `importance`: activation, magnitude, taylor, bn_scale, random (channels_scores.py), or a method that scores single
    weights: fisher, wanda, sparsegpt, alps. `allocation`: uniform takes floor(share * channels) from every group,
    global floor(share * all channels) by score. `minimum` units are left in every group; what a group keeps is rounded
    up to a multiple of `multiple_of` channels. Layers whose name matches a pattern of `exclude` (shell style, "stem.*")
    keep all channels they make. A unit is what must go together: one channel, or several where groups of a convolution
    or GroupNorm, a chunk or a reshape tie them.
    """

    share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    importance: Annotated[str, among(_IMPORTANCE)] = "activation"
    allocation: Literal["uniform", "global"] = "uniform"
    minimum: Annotated[int, Field(ge=1)] = 1
    multiple_of: Annotated[int, Field(ge=1, le=1024)] = 1
    exclude: tuple[str, ...] = ()
    repair: Literal["least_squares", "none"] = "least_squares"
    ridge: Annotated[float, Field(gt=0, le=1)] = 0.01

    def check(self, model: Model) -> None:
        """Raise RecipeError or ModelError when nothing can go; models with example inputs are traced for it."""
        if self.share == 0:
            raise RecipeError("channels: share is 0: nothing would be removed")
        names = [name for name, part in model.module.named_modules() if isinstance(part, _KINDS)]
        if not names:
            raise ModelError(f"channels: model {model.name} has no convolution or Linear to take channels from")
        for pattern in self.exclude:
            if not any(fnmatch(name, pattern) for name in names):
                some = f"{', '.join(names[:3])}, ... ({len(names)})"
                raise RecipeError(f"channels: exclude {pattern!r} matches no layer. Layers: {some}")
        if model.examples is not None:
            self._groups(model, coupling(model, trace(model, dict(model.examples))))

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The model with fewer channels; Change details name what each group lost and what was left alone."""
        self.check(model)
        torch.set_num_threads(context.threads)
        if not context.calibration:
            raise DataError("channels: there is no calibration data")
        graph = trace(model, context.calibration[0])
        _refuse_nan(model, graph)
        found = coupling(model, graph)
        work = self._groups(model, found)
        scores = unit_scores(model, found, work.groups, self.importance, context.calibration, context.seed)
        gone, work = self._proven(model, graph, found, work, scores)
        student = model.after(copy.deepcopy(model.module).eval(), repr(self))
        with torch.no_grad():
            cut(student.module, found, _joined(gone))
            refitted = 0
            if self.repair == "least_squares":
                refitted = refit_readers(
                    model, student, found, _joined(gone), context.calibration, self.ridge, context.progress
                )
        context.progress("channels", 1, 1)
        return student, self._change(model, student, found, work, gone, refitted)

    def _groups(self, model: Model, found: Coupling) -> _Work:
        """The groups that may lose channels. Raises ModelError when there is none."""
        alone, groups = dict(found.left_alone), []
        for group in found.groups:
            shut = [p.module for p in group.writers if any(fnmatch(p.module, pattern) for pattern in self.exclude)]
            why = f"excluded ({shut[0]})" if shut else unscored(model, group, self.importance)
            if why is None:
                groups.append(group)
            else:
                alone.update(dict.fromkeys((port.module for port in group.writers), why))
        work = _Work(groups, alone)
        if not groups:
            raise ModelError(f"channels: model {model.name} has no channels that can be removed: {work.reasons()}")
        return work

    def _proven(
        self, model: Model, graph: Graph, found: Coupling, work: _Work, scores: Sequence[torch.Tensor]
    ) -> tuple[list[Labels], _Work]:
        """Units to remove by group, proven to be removable; groups that are not are left alone."""
        gone = self._choose(work.groups, scores)
        if prove(model, graph, found, _joined(gone)) is None:
            return gone, work
        alone, good = dict(work.left_alone), []
        for place, (group, units) in enumerate(zip(work.groups, gone, strict=True)):
            # A group that loses nothing by this plan may by the next one.
            tried = units if len(units) else group.units[: len(group.units) // 2]
            why = prove(model, graph, found, tried) if len(tried) else None
            if why is None:
                good.append(place)
            else:
                alone.update(dict.fromkeys((port.module for port in group.writers), why))
        left = _Work([work.groups[place] for place in good], alone)
        if not good:
            raise ModelError(f"channels: model {model.name} has no channels that can be removed: {left.reasons()}")
        gone = self._choose(left.groups, [scores[place] for place in good])
        why = prove(model, graph, found, _joined(gone))
        if why is not None:
            raise ModelError(f"channels: model {model.name}: {why}; exclude layers that depend on each other's sizes")
        return gone, left

    def _choose(self, groups: Sequence[Group], scores: Sequence[torch.Tensor]) -> list[Labels]:
        return choose(groups, scores, self.share, self.allocation, self.minimum, self.multiple_of)

    def _change(
        self, model: Model, student: Model, found: Coupling, work: _Work, gone: Sequence[Labels], refitted: int
    ) -> Change:
        before, after = model.parameters(), student.parameters()
        lost, units = sum(map(len, gone)), sum(len(group.units) for group in work.groups)
        removed = {
            group.name: f"{len(part)} of {len(group.units)}" for group, part in zip(work.groups, gone, strict=True)
        }
        blended = sorted(node.name for node, labels in found.blended if np.isin(labels, _joined(gone)).any())
        why = f"{lost:,} of {units:,} channels in {len(work.groups)} groups removed "
        why += f"({self.importance}, {self.allocation}); {before:,} to {after:,} parameters"
        if work.left_alone:
            why += f"; left alone: {work.reasons()}"
        details = {
            "removed": removed,
            "left_alone": work.left_alone,
            "refitted": refitted,
            "norms_over_fewer_channels": blended,
            "parameters_before": before,
            "parameters_after": after,
        }
        return Change("channels", lost > 0, why, details)


@plain(frozen=True)
class _Work:
    """What may lose channels, and the layers that may not with the reason."""

    groups: Sequence[Group]
    left_alone: dict[str, str]

    def reasons(self) -> str:
        """The first few layers left alone and why."""
        said = [f"{name} ({why})" for name, why in list(self.left_alone.items())[:_SHOWN]]
        more = len(self.left_alone) - len(said)
        return ", ".join(said) + (f" and {more} more" if more > 0 else "")


def _joined(gone: Sequence[Labels]) -> Labels:
    return np.concatenate([*gone, np.zeros(0, dtype=np.int64)])


def _refuse_nan(model: Model, graph: Graph) -> None:
    with torch.no_grad():
        outputs = model.forward({name: value.clone() for name, value in graph.feed.items()})
    for name, value in outputs.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(f"channels: output {name} of the dense model is NaN or infinite on the calibration data")
