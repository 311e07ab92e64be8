"""The step `sensitivity`: changes nothing, and says how much each layer minds losing weights, neurons or heads."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.closeness import Gauge
from edgeredux.errors import ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.groups import find
from edgeredux.pruning.layers import Layer, check_fit, layers
from edgeredux.pruning.methods import method, name_of
from edgeredux.pruning.sensitivity import Scan, UnitScan, WeightScan, scan
from edgeredux.seams import ReduceContext
from edgeredux.sensitivity_table import SensitivityTable
from edgeredux.sparsity.patterns import parse

Share = Annotated[float, Field(gt=0, lt=1)]
_UNITS = {"neurons": "ffn", "heads": "heads"}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Sensitivity:
    """Prune each layer alone to every share of `grid` and record what that does; the model goes on as it came.

    `method` and `pattern` are those of the step `prune`; patterns `neurons` and `heads` are shares of FFN neurons and
    attention heads instead. `layers` and `exclude` choose by name (shell style). `samples` of the calibration data give
    loss and quality, those of the training data where only they have a classifier's labels; the evaluation part is
    never looked at, it is kept for the verdict.
    """

    method: str | dict[str, Any] = "wanda"
    pattern: str = "unstructured"
    grid: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.3, 0.5, 0.7, 0.9)
    compare: Literal["auto", "matrix", "row"] = "auto"
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    exclude: tuple[str, ...] = ()
    samples: Annotated[int, Field(ge=1)] = 64

    @field_validator("pattern")
    @classmethod
    def _pattern_is_known(cls, value: str) -> str:
        try:
            return value if value in _UNITS else parse(value).name
        except RecipeError as problem:
            raise ValueError(f"{problem}, {', '.join(_UNITS)}") from problem

    @model_validator(mode="after")
    def _fits_together(self) -> Sensitivity:
        try:
            method(self.method, "sensitivity")
        except RecipeError as problem:
            raise ValueError(str(problem)) from problem
        if list(self.grid) != sorted(set(self.grid)):
            raise ValueError(f"grid {list(self.grid)} must rise, each share once")
        if self.compare != "auto" and self.pattern != "unstructured":
            raise ValueError(f"compare is for pattern unstructured; {self.pattern} says itself what competes")
        return self

    def check(self, model: Model) -> None:
        """Raise RecipeError or ModelError when there is no layer to scan or one does not take the pattern."""
        what, chosen = self._scan(model), self._layers(model)
        if isinstance(what, WeightScan):
            check_fit(chosen, what.pattern, "sensitivity")
        for layer in chosen:
            if not what.levels(layer):
                raise RecipeError(f"sensitivity: grid {list(self.grid)} removes nothing of {layer.name}; raise it")

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The model as it came; Change details hold the table of all layers under "sensitivity"."""
        self.check(model)
        torch.set_num_threads(context.threads)
        labelled = model.task == "classification" and any("labels" in feed for feed in context.training)
        gauge = Gauge(model, context.training if labelled else context.calibration, self.samples)
        chosen = self._layers(model)
        curves = scan(model, chosen, self._scan(model), gauge, context.calibration, context.seed, context.progress)
        kind = "labelled" if gauge.labelled else "calibration"
        how = f"{name_of(self.method)}, {self.pattern}, one layer at a time, {gauge.samples} {kind} samples"
        table = SensitivityTable(
            tuple(curves.values()),
            gauge.loss_unit,
            gauge.quality_unit,
            how,
            dense_quality=gauge.dense.quality,
            dense_task_loss=gauge.dense.task_loss,
        )
        order = table.by_sensitivity()
        why = f"nothing changed; of {len(order)} layers {order[0].layer} minds most, {order[-1].layer} least ({how})"
        return model, Change("sensitivity", False, why, {"sensitivity": table.to_json()})

    def _scan(self, model: Model) -> Scan:
        chosen = method(self.method, "sensitivity")
        if self.pattern in _UNITS:
            groups = {group.reader: group for group in find(model.module) if group.kind == _UNITS[self.pattern]}
            return UnitScan(chosen, groups, self.grid)
        return WeightScan(
            chosen, parse(self.pattern, chosen.compare if self.compare == "auto" else self.compare), self.grid
        )

    def _layers(self, model: Model) -> list[Layer]:
        found = layers(model, self.exclude, "sensitivity")
        if self.pattern in _UNITS:
            readers = {group.reader for group in find(model.module) if group.kind == _UNITS[self.pattern]}
            found = [layer for layer in found if layer.name in readers]
            if not found:
                raise ModelError(f"sensitivity: model {model.name} has no {self.pattern} of a known structure")
        for pattern in self.layers:
            if not any(fnmatch(layer.name, pattern) for layer in found):
                some = ", ".join(layer.name for layer in found[:3])
                raise RecipeError(f"sensitivity: layers {pattern!r} matches none. Layers: {some}, ... ({len(found)})")
        return [layer for layer in found if any(fnmatch(layer.name, pattern) for pattern in self.layers)]
