"""The step `structured`: whole FFN neurons and attention heads go, and what is left is refitted to the dense outputs.

Scores are those of unit_scores.py, counts those of unit_counts.py; proof.py makes sure on real inputs that nothing else
hangs on a unit. The calibration data goes through the dense and the reduced model in one lockstep pass: at every layer
that reads units, the ones that go are silenced and the others refitted by least squares (repair.py), X being what the
already reduced layers before make of the data and Y what the dense layer says to what the dense model feeds it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.batching import by_length
from edgeredux.errors import DataError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.groups import Group, find, remove
from edgeredux.pruning.layers import Layer
from edgeredux.pruning.methods import among
from edgeredux.pruning.proof import disproved
from edgeredux.pruning.repair import ridge_fit
from edgeredux.pruning.stock import describe_groups
from edgeredux.pruning.unit_counts import check_patterns, normalised, over_all, share_of, uniform
from edgeredux.pruning.unit_scores import IMPORTANCE, READ, read_scores, unit_scores
from edgeredux.pruning.walk import Inputs, stops
from edgeredux.seams import Feed, ReduceContext

Share = Annotated[float, Field(ge=0, lt=1)]
Shares: TypeAlias = Share | dict[str, Share]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Structured:
    """Remove the share `ffn` of the FFN neurons and `heads` of the attention heads.

    A share is a number for every layer, or a mapping from patterns of the reading layer's name (shell style,
    "*.layers.0.*") to numbers, first match, 0 for layers without one. Counts are floor(share * units); at least one
    unit stays. With grouped-query attention a unit is a KV head with its query heads. `allocation: global` takes
    floor(share * all units of the kind), the worst of the whole model. `importance`: unit_scores.py. Shapes really
    shrink; the config says them where it can, else edgeredux_shapes.json does.
    """

    ffn: Shares = 0.25
    heads: Shares = 0.25
    importance: Annotated[str, among(IMPORTANCE)] = "activation"
    allocation: Literal["uniform", "global"] = "uniform"
    repair: Literal["least_squares", "none"] = "least_squares"
    ridge: Annotated[float, Field(gt=0, le=1)] = 0.01

    def check(self, model: Model) -> None:
        """Raise when nothing would be removed, or the model has no structure of a known kind."""
        if not any(_largest(said) for said in (self.ffn, self.heads)):
            raise RecipeError("structured: ffn and heads are both 0: nothing would be removed")
        groups = find(model.module)
        for kind, said in (("ffn", self.ffn), ("heads", self.heads)):
            members = [group for group in groups if group.kind == kind]
            if _largest(said) and not members:
                raise ModelError(
                    f"structured: model {model.name} has no {kind} group of a known structure; set {kind}: 0"
                )
            check_patterns(members, said, f"structured: {kind}")
            if isinstance(said, Mapping) and self.allocation == "global":
                raise RecipeError(f"structured: allocation: global takes one number for {kind}, not one by layer")
            for tie in {group.tie for group in members if group.tie}:
                if len({share_of(group, said) for group in members if group.tie == tie}) > 1:
                    raise RecipeError(f"structured: the heads of {tie} share one position bias: give them one share")

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The model with fewer neurons and heads; deterministic for the same calibration data."""
        self.check(model)
        torch.set_num_threads(context.threads)
        if not context.calibration:
            raise DataError("structured: there is no calibration data")
        feeds = by_length(model, context.calibration)
        groups = [group for group in find(model.module) if _largest(self._said(group))]
        unproven = disproved(model, groups, feeds[0])
        groups = [group for group in groups if group.reader not in unproven]
        if not groups:
            name, why = next(iter(unproven.items()))
            raise ModelError(f"structured: model {model.name}: no unit can be taken out alone: {name}: {why}")
        module = copy.deepcopy(model.module).eval()
        student = model.after(module, repr(self))
        before = model.parameters()
        keep = self._silence(model, student, groups, feeds, context)
        removed: dict[str, int] = {"ffn": 0, "heads": 0}
        layers: dict[str, str] = {}
        for group in groups:
            if len(keep[group.reader]) < group.units:
                remove(module, group, keep[group.reader])
            removed[group.kind] += group.units - len(keep[group.reader])
            layers[group.reader] = f"{group.units - len(keep[group.reader])} of {group.units}"
        context.progress("structured", len(groups), len(groups))
        describe_groups(module)
        after = student.parameters()
        why = f"{removed['ffn']} FFN neurons and {removed['heads']} head groups removed"
        why += f" ({self.importance}, {self.allocation}); {before:,} to {after:,} parameters"
        if unproven:
            why += f"; {len(unproven)} layers left alone"
        details = {"removed": removed, "removed_by_layer": layers, "left_alone": unproven}
        details |= {"parameters_before": before, "parameters_after": after}
        return student, Change("structured", before != after, why, details)

    def _said(self, group: Group) -> float | Mapping[str, float]:
        said = self.ffn if group.kind == "ffn" else self.heads
        return share_of(group, said) if isinstance(said, Mapping) else said

    def _silence(
        self, dense: Model, student: Model, groups: Sequence[Group], feeds: Sequence[Feed], context: ReduceContext
    ) -> dict[str, torch.Tensor]:
        """Units to keep by reader; in `student` the readers' other columns are zero and the rest is refitted."""
        ahead = self.allocation == "global" or self.importance not in READ
        first = [group for group in groups if ahead or group.tie]
        scores = unit_scores(dense, first, self.importance, feeds, context.seed) if first else {}
        scores |= _tied(first, scores)
        counts = self._counts(groups, scores)
        keep: dict[str, torch.Tensor] = {}
        home = {group.reader: group for group in groups}

        def layers(model: Model) -> list[Layer]:
            return [Layer(name, model.module.get_submodule(name)) for name in home]

        with (
            torch.no_grad(),
            closing(stops(dense, layers(dense), feeds)) as wanted,
            closing(stops(student, layers(student), feeds, context.progress)) as made,
        ):
            for (original, seen), (layer, inputs) in zip(wanted, made, strict=True):
                group = home[layer.name]
                score = scores.get(layer.name)
                if score is None:
                    score = read_scores(group, layer.matrix(), inputs, self.importance)
                # Ties go to the lower number: the count is exact, whatever the scores.
                order = torch.argsort(score, descending=True, stable=True)
                keep[layer.name] = order[: group.units - counts[layer.name]].sort().values
                if counts[layer.name]:
                    self._refit(original, seen, layer, inputs, group.columns[keep[layer.name]].flatten())
        return keep

    def _counts(self, groups: Sequence[Group], scores: Mapping[str, torch.Tensor]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for kind, said in (("ffn", self.ffn), ("heads", self.heads)):
            members = [group for group in groups if group.kind == kind]
            if self.allocation == "global" and members:
                assert not isinstance(said, Mapping)
                found = over_all(members, [scores[group.reader] for group in members], said)
            else:
                found = uniform(members, said)
            counts |= {group.reader: count for group, count in zip(members, found, strict=True)}
        return counts

    def _refit(self, original: Layer, seen: Inputs, layer: Layer, inputs: Inputs, columns: torch.Tensor) -> None:
        """Zero the columns that go; fit the others so that the layer says what the dense one says to its inputs."""
        weight, offset = layer.matrix(), original.module.bias
        start = weight[:, columns]
        whole = torch.zeros_like(weight)
        if self.repair == "none":
            whole[:, columns] = start
            layer.store(whole)
            return
        x = [part[0][:, columns].float() for part in inputs]
        target = original.matrix()
        y = [part[0].float() @ target.T + (offset.float() if isinstance(offset, torch.Tensor) else 0) for part in seen]
        bias = layer.module.bias
        fitted, intercept = ridge_fit(x, y, start, self.ridge, intercept=bias is not None, where="structured")
        whole[:, columns] = fitted.float()
        layer.store(whole)
        if intercept is not None:
            assert isinstance(bias, torch.Tensor)
            bias.copy_(intercept)


def _largest(said: float | Mapping[str, float]) -> float:
    return max(said.values(), default=0.0) if isinstance(said, Mapping) else said


def _tied(groups: Sequence[Group], scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """For groups that must lose the same units: the mean of their scores, each over its own mean."""
    ties: dict[str, list[str]] = {}
    for group in groups:
        if group.tie:
            ties.setdefault(group.tie, []).append(group.reader)
    found: dict[str, torch.Tensor] = {}
    for members in ties.values():
        mean = torch.stack([normalised(scores[name]) for name in members]).mean(0)
        found |= dict.fromkeys(members, mean)
    return found
