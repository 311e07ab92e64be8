"""Unstructured pruning: single weights become exact zeros, exactly as many as asked for.

Scores: "magnitude" |W|; "wanda" |W_ij| * ||X_j||_2, compared within each output row i, X_j the j-th input over all
calibration tokens, taken block by block with the earlier blocks already pruned (Sun et al. 2023, eq. 1 and alg. 1).
Zeros alone save nothing in a dense kernel: which targets pay for them is the target file's to say.
"""

from __future__ import annotations

import copy
from fnmatch import fnmatch
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.errors import ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.groups import linear_dict
from edgeredux.pruning.observe import observe
from edgeredux.seams import ReduceContext
from edgeredux.sparsity.counts import count_of, smallest


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Prune:
    """Set the share `zeros` of the weights to 0: floor(zeros * size) of each layer, each row (wanda), or all (global).

    Only Linears of encoder and decoder blocks (of any part in a plain nn.Module), without those whose name matches a
    pattern of `exclude` (shell style, "*.query"). Zeros that are there already count.
    """

    zeros: Annotated[float, Field(gt=0, lt=1)] = 0.5
    method: Literal["magnitude", "wanda"] = "magnitude"
    pattern: Literal["unstructured"] = "unstructured"
    scope: Literal["layer", "global"] = "layer"
    exclude: tuple[str, ...] = ()

    def check(self, model: Model) -> None:
        """Raise RecipeError or ModelError when scope and method do not fit or no Linear is left to prune."""
        if self.method == "wanda" and self.scope == "global":
            raise RecipeError("prune: wanda compares weights within an output row; scope: global needs magnitude")
        names = [name for part in blocks(model).values() for name in part]
        for pattern in self.exclude:
            if not any(fnmatch(name, pattern) for name in names):
                some = ", ".join(names[:3]) or "none"
                raise RecipeError(f"prune: exclude {pattern!r} matches no Linear. Linears: {some}, ... ({len(names)})")
        if not any(self._chosen(model).values()):
            raise ModelError(f"prune: model {model.name} has no Linear in a block that could be pruned")

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The model with zeros; Change details hold weights and zeros of the pruned layers, in all and by layer."""
        self.check(model)
        torch.set_num_threads(context.threads)
        student = model.after(copy.deepcopy(model.module).eval(), repr(self))
        linears = linear_dict(student.module)
        chosen = self._chosen(student)
        names = [name for part in chosen.values() for name in part]
        with torch.no_grad():
            if self.scope == "global":
                self._prune_together([linears[name].weight.data for name in names])
            for index, (block, part) in enumerate(chosen.items() if self.scope == "layer" else ()):
                context.progress(f"{self.method} {block or 'all layers'}", index, len(chosen))
                norms = _norms(student, part, block, context) if self.method == "wanda" and part else {}
                for name in part:
                    weight = linears[name].weight
                    if self.method == "wanda":
                        mask = smallest(weight.abs() * norms[name], count_of(self.zeros, weight.shape[1]))
                    else:
                        mask = smallest(weight.abs().flatten(), count_of(self.zeros, weight.numel())).view_as(weight)
                    weight.masked_fill_(mask, 0.0)
        context.progress(self.method, 1, 1)
        layers = {name: int((linears[name].weight == 0).sum()) for name in names}
        weights, zeros = sum(linears[name].weight.numel() for name in names), sum(layers.values())
        why = f"{zeros:,} of {weights:,} weights in {len(names)} Linears are zero ({self.method}, {self.scope})"
        return student, Change("prune", zeros > 0, why, {"weights": weights, "zeros": zeros, "zeros_by_layer": layers})

    def _chosen(self, model: Model) -> dict[str, list[str]]:
        return {
            block: [name for name in names if not any(fnmatch(name, pattern) for pattern in self.exclude)]
            for block, names in blocks(model).items()
        }

    def _prune_together(self, weights: list[torch.Tensor]) -> None:
        sizes = torch.cat([weight.abs().flatten() for weight in weights])
        mask = smallest(sizes, count_of(self.zeros, len(sizes)))
        for weight, part in zip(weights, torch.split(mask, [weight.numel() for weight in weights]), strict=True):
            weight.masked_fill_(part.view_as(weight), 0.0)


def blocks(model: Model) -> dict[str, list[str]]:
    """Prunable Linears by the block they are in, in the model's order: the items of the outermost module lists.

    Poolers, heads and embeddings of a transformers model stand outside those lists. A plain nn.Module is one block "".
    """
    found: dict[str, list[str]] = {}
    lists = [name for name, part in model.module.named_modules() if isinstance(part, torch.nn.ModuleList)]
    for name in linear_dict(model.module):
        home = next((place for place in lists if name.startswith(f"{place}.")), None) if model.is_transformers else ""
        if home is not None:
            block = ".".join(name.split(".")[: home.count(".") + 2]) if home else ""
            found.setdefault(block, []).append(name)
    return found


def _norms(student: Model, names: list[str], block: str, context: ReduceContext) -> dict[str, torch.Tensor]:
    """||X_j||_2 over all calibration tokens for each input j of each Linear, [in_features], float32."""
    sums = {
        name: torch.zeros(part.in_features, dtype=torch.float64) for name, part in linear_dict(student.module).items()
    }

    def see(name: str, inputs: torch.Tensor, _: torch.Tensor) -> None:
        sums[name] += inputs.double().square().sum(0)

    observe(student, names, context.calibration, see, until=block or None)
    return {name: sums[name].sqrt().float() for name in names}
