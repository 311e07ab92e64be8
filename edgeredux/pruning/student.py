"""The step `student`: a shallower model that begins with some layers of the one it comes from."""

from __future__ import annotations

import copy
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.errors import ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.depth import Stack, remove, stacks
from edgeredux.seams import ReduceContext
from edgeredux.training.losses.hidden import layer_map


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Student:
    """Keep the named `layers` (from 0) with their weights, or that many, spread evenly and ending with the last.

    What DistilBERT (Sanh et al. 2019) and patient distillation start from: 3 of 6 layers are 1, 3 and 5. Where the step
    depth says what goes, this one says what stays. Distil afterwards: the loss `hidden` maps the layers evenly, or as
    its option `layers` says.
    """

    layers: Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]

    def check(self, model: Model) -> None:
        """Raise ModelError for a model whose layers are not found, RecipeError for layers that it does not have."""
        stack = _stack(model)
        chosen = self._chosen(len(stack.items))
        if chosen[: stack.fixed] != tuple(range(stack.fixed)):
            raise RecipeError(
                f"student: layers {list(chosen)}: the first {stack.fixed} of {stack.name} are built otherwise than the "
                "last and must stay; name the layers, them among these"
            )

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The shallower model; Change details hold the layers kept and parameters before and after."""
        self.check(model)
        student = model.after(copy.deepcopy(model.module).eval(), repr(self))
        stack = _stack(student)
        total = len(stack.items)
        chosen = self._chosen(total)
        remove(student.module, stack, sorted(set(range(total)) - set(chosen)))
        before, after = model.parameters(), student.parameters()
        why = f"layers {', '.join(map(str, chosen))} of {total} kept; {before:,} to {after:,} parameters"
        details = {"layers": list(chosen), "parameters_before": before, "parameters_after": after}
        return student, Change("student", after < before, why, details)

    def _chosen(self, total: int) -> tuple[int, ...]:
        if isinstance(self.layers, int):
            if self.layers > total:
                raise RecipeError(f"student: layers: {self.layers} of {total}. Allowed: 1..{total}")
            return tuple(layer_map("uniform", self.layers, total, "student").values())
        if list(self.layers) != sorted(set(self.layers)) or self.layers[-1] >= total:
            raise RecipeError(f"student: layers {list(self.layers)} must be rising numbers of 0..{total - 1}")
        return self.layers


def _stack(model: Model) -> Stack:
    found = stacks(model)
    if len(found) != 1:
        raise ModelError(f"student: model {model.name} has {len(found)} stacks of layers; exactly one is needed")
    return found[0]
