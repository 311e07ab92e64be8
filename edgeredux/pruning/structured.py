"""Structured pruning: whole FFN neurons and attention heads go, and what is left is refitted to the dense outputs.

Importance of an input channel j of the reading Linear: "activation" E[x_j^2] * ||W[:, j]||^2, the energy it brings to
the output (Wanda's |W| * ||X||, Sun et al. 2023, squared and summed over outputs), "magnitude" ||W[:, j]||^2 alone;
"taylor" (taylor.py) looks at the model's output instead of the layer's.
Repair: least squares per reading Linear (repair.py), X the kept channels as the already pruned model produces them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.batching import by_length
from edgeredux.errors import DataError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.groups import Group, expand, find, linear_dict, remove, update_config
from edgeredux.pruning.observe import observe
from edgeredux.pruning.repair import ridge_fit
from edgeredux.pruning.taylor import taylor_scores
from edgeredux.seams import Feed, ReduceContext
from edgeredux.sparsity.counts import count_of

Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Structured:
    """Remove the share `ffn` of the FFN neurons and `heads` of the attention heads of every layer.

    Counts are floor(share * units), the same in every layer of equal width; at least one unit stays. With grouped-query
    attention a unit is a KV head with its query heads. Shapes really shrink; the config says them where it can, else
    edgeredux_shapes.json does.
    """

    ffn: Share = 0.25
    heads: Share = 0.25
    importance: Literal["activation", "taylor", "magnitude"] = "activation"
    repair: Literal["least_squares", "none"] = "least_squares"
    ridge: Annotated[float, Field(gt=0, le=1)] = 0.01

    def check(self, model: Model) -> None:
        """Raise when nothing would be removed, or the model has no structure of a known kind."""
        if self.ffn == 0 and self.heads == 0:
            raise RecipeError("structured: ffn and heads are both 0: nothing would be removed")
        kinds = {group.kind for group in find(model.module)}
        for kind, share in (("ffn", self.ffn), ("heads", self.heads)):
            if share > 0 and kind not in kinds:
                raise ModelError(
                    f"structured: model {model.name} has no {kind} group of a known structure; set {kind}: 0"
                )

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The model with fewer neurons and heads; deterministic for the same calibration data."""
        torch.set_num_threads(context.threads)
        if not context.calibration:
            raise DataError("structured: no calibration data")
        module = copy.deepcopy(model.module).eval()
        student = model.after(module, repr(self))
        feeds = by_length(model, context.calibration)
        groups = [group for group in find(module) if self._share(group) > 0]
        before = sum(parameter.numel() for parameter in module.parameters())
        readers = [group.reader for group in groups]
        with torch.no_grad():
            wanted = _capture(model, readers, feeds, outputs=True)
            taylor = taylor_scores(model, groups, feeds, context.seed) if self.importance == "taylor" else {}
            removed: dict[str, int] = {"ffn": 0, "heads": 0}
            for index, group in enumerate(groups):
                context.progress(f"{group.reader}", index, len(groups))
                inputs = _capture(student, [group.reader], feeds)[group.reader]
                keep = self._keep(module, group, inputs, taylor.get(group.reader))
                removed[group.kind] += group.units - len(keep)
                start = linear_dict(module)[group.reader].weight.detach().clone()
                remove(module, group, keep)
                if self.repair == "least_squares":
                    columns = expand(keep, group.width)
                    self._refit(
                        linear_dict(module)[group.reader], inputs[:, columns], wanted[group.reader], start[:, columns]
                    )
        context.progress("structured", len(groups), len(groups))
        update_config(module)
        after = sum(parameter.numel() for parameter in module.parameters())
        gone = f"{removed['ffn']} FFN neurons and {removed['heads']} head groups removed"
        why = f"{gone}; {before:,} to {after:,} parameters"
        details = {"removed": removed, "parameters_before": before, "parameters_after": after}
        return student, Change("structured", before != after, why, details)

    def _share(self, group: Group) -> float:
        return self.ffn if group.kind == "ffn" else self.heads

    def _keep(
        self, module: torch.nn.Module, group: Group, inputs: torch.Tensor, taylor: torch.Tensor | None
    ) -> torch.Tensor:
        weight = linear_dict(module)[group.reader].weight.double()
        score = weight.square().sum(0)
        if self.importance == "activation":
            score = score * inputs.double().square().mean(0)
        per_unit = score.view(group.units, group.width).sum(1) if taylor is None else taylor
        count = max(1, group.units - count_of(self._share(group), group.units))
        # Ties go to the lower index: the count is exact, whatever the scores.
        order = torch.argsort(per_unit, descending=True, stable=True)
        return order[:count].sort().values

    def _refit(self, linear: torch.nn.Linear, x: torch.Tensor, y: torch.Tensor, start: torch.Tensor) -> None:
        """Set weight and bias to the ridge solution around `start`."""
        weight, bias = ridge_fit([x], [y], start, self.ridge, intercept=linear.bias is not None, where="structured")
        linear.weight = torch.nn.Parameter(weight.float().contiguous())
        if bias is not None:
            linear.bias = torch.nn.Parameter(bias.float().contiguous())


def _capture(
    model: Model, names: Sequence[str], feeds: Sequence[Feed], *, outputs: bool = False
) -> dict[str, torch.Tensor]:
    """Inputs (or outputs) of the named Linears over all real (unpadded) positions: [positions, features]."""
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def see(name: str, given: torch.Tensor, made: torch.Tensor) -> None:
        kept[name].append((made if outputs else given).clone())

    observe(model, names, feeds, see, until=names[-1] if len(names) == 1 else None)
    return {name: torch.cat(values) for name, values in kept.items()}
