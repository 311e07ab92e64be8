"""The step `student`: a shallower model that begins with some layers of the one it comes from."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.errors import ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.seams import ReduceContext
from edgeredux.training.losses.hidden import layer_map

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_INDICES = ("layer_idx", "layer_index", "layer_id")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Student:
    """Keep the named `layers` (from 0) with their weights, or that many, spread evenly and ending with the last.

    What DistilBERT (Sanh et al. 2019) and patient distillation start from: 3 of 6 layers are 1, 3 and 5. Config, layer
    numbers and lists by layer in the config follow, so that stock transformers saves and loads it. Distil afterwards:
    the loss `hidden` maps the layers evenly, or as its option `layers` says.
    """

    layers: Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]

    def check(self, model: Model) -> None:
        """Raise ModelError for a model whose layers are not found, RecipeError for layers that it does not have."""
        _, parts = _stack(model)
        self._chosen(len(parts))

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The shallower model; Change details hold the layers kept and parameters before and after."""
        student = model.after(copy.deepcopy(model.module).eval(), repr(self))
        path, parts = _stack(student)
        total = len(parts)
        chosen = self._chosen(total)
        owner, _, name = path.rpartition(".")
        kept = [parts[place] for place in chosen]
        setattr(student.module.get_submodule(owner), name, torch.nn.ModuleList(kept))
        for place, part in enumerate(kept):
            for each in part.modules():
                for key in _INDICES:
                    if isinstance(getattr(each, key, None), int):
                        setattr(each, key, place)
        _tell(student.module.config, chosen, total)
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


def _stack(model: Model) -> tuple[str, torch.nn.ModuleList]:
    """The one list of layers that the config counts, and its path."""
    config = getattr(model.module, "config", None)
    count = next((getattr(config, name) for name in _COUNTS if isinstance(getattr(config, name, None), int)), None)
    found = [
        (path, part)
        for path, part in model.module.named_modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) == count
    ]
    outer = [path for path, _ in found if not any(path.startswith(f"{other}.") for other, _ in found)]
    if len(outer) != 1:
        raise ModelError(
            f"student: model {model.name} has {len(outer)} lists of as many layers as its config says; one is needed"
        )
    return next(item for item in found if item[0] == outer[0])


def _tell(config: Any, chosen: tuple[int, ...], total: int) -> None:
    """Let the config say how many layers there are, and shorten its lists with one entry a layer."""
    for name in _COUNTS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, len(chosen))
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == total:
            setattr(config, name, type(value)(value[place] for place in chosen))
