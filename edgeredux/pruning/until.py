"""The step `prune_until`: more and more zeros, until the model is no longer good enough; the last good one stays.

Each setting is pruned anew from the model as it came, on calibration data, and judged on samples that calibrate nothing
(held_out.py) by the task's own metric. The search stops at the first setting that misses a limit. With allocation
sensitivity it is the greedy search by layer: each layer is scanned once alone, and step by step the zeros go to
whichever layer loses least for a further weight (sensitivity_allocation.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from edgeredux import registry
from edgeredux.artifact import Change
from edgeredux.errors import RecipeError, unknown
from edgeredux.held_out import Judge, check_limit, hold_out
from edgeredux.model import Model
from edgeredux.pruning.layers import layers
from edgeredux.pruning.methods import method, name_of
from edgeredux.pruning.sensitivity_allocation import bounds, loss_curves, shares
from edgeredux.pruning.unstructured import Prune
from edgeredux.pruning.work import Work
from edgeredux.recipe import METRICS
from edgeredux.seams import ReduceContext, ReduceStep
from edgeredux.sparsity.patterns import parse
from edgeredux.trials import Trial, Trials
from edgeredux.units import STRUCTURED, step_of

Share = Annotated[float, Field(gt=0, lt=1)]
Maker: TypeAlias = Callable[[float], tuple[Model, Change]]
_GRID = (0.3, 0.5, 0.7, 0.9)  # levels of the sensitivity scan


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PruneUntil:
    """Raise the zeros from `first` (by default `by`) by `by` up to `most`, and stop where `limit` is missed.

    `limit`: {metric: value} as in a budget, quality, quality_ratio or agreement_top1 at least, perplexity or
    perplexity_ratio at most; a number alone is a quality. `method`, `pattern`, `allocation` and `exclude` as in
    edgeredux.prune; `options` are others of the step that prunes, such as {reference: dense}. `halvings`: how often the
    gap between the last good and the first missed setting is halved afterwards. Every `judge_every`-th calibration
    sample judges, at most `samples` of them.
    """

    limit: dict[str, float] | float
    method: str | dict[str, Any] | None = None
    pattern: str = "unstructured"
    allocation: str = "uniform"
    exclude: tuple[str, ...] = ()
    options: dict[str, Any] = Field(default_factory=dict)
    first: Share | None = None
    by: Share = 0.05
    most: Share = 0.95
    halvings: Annotated[int, Field(ge=0, le=10)] = 0
    judge_every: Annotated[int, Field(ge=2, le=100)] = 4
    samples: Annotated[int, Field(ge=4)] = 256

    @field_validator("limit")
    @classmethod
    def _limit_is_known(cls, value: dict[str, float] | float) -> dict[str, float] | float:
        said = value if isinstance(value, dict) else {"quality": value}
        for name, limit in said.items():
            if name not in METRICS:
                raise ValueError(unknown("limit", name, METRICS, "prune_until"))
            if not (limit >= 0 and math.isfinite(limit)):
                raise ValueError(f"{name} must be a number of at least 0, not {limit!r}")
        if not said:
            raise ValueError("name at least one metric")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> PruneUntil:
        if not self.levels():
            raise ValueError(f"first {self.first} is above most {self.most}: nothing would be tried")
        try:
            step_of(self.pattern, self.method, self.levels()[0], self.allocation, self.exclude, "prune_until")
            if self.pattern not in STRUCTURED and parse(self.pattern).fixed_zeros is not None:
                raise ValueError(f"pattern {self.pattern} has zeros of its own, so there is nothing to raise")
            self.step(self.levels()[0])
        except RecipeError as problem:
            raise ValueError(str(problem)) from problem
        return self

    def levels(self) -> list[float]:
        """The settings in the order in which they are tried."""
        first = self.by if self.first is None else self.first
        # Rounded, so that the third step of 0.1 is 0.3 and not 0.30000000000000004.
        return [round(first + k * self.by, 9) for k in range(math.floor((self.most - first) / self.by + 1e-9) + 1)]

    def step(self, zeros: float) -> ReduceStep:
        """The step that prunes to `zeros`. Raises RecipeError."""
        name, options = step_of(self.pattern, self.method, zeros, self.allocation, self.exclude, "prune_until")
        found: ReduceStep = registry.create("reduce step", name, {**options, **self.options}, "prune_until")
        return found

    def check(self, model: Model) -> None:
        """Raise RecipeError or ModelError when the limit is not of this task or the first setting cannot be had."""
        check_limit(self._limit(), model.task, "prune_until")
        self.step(self.levels()[0]).check(model)

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The model at the last setting within the limit; Change details hold every trial under "search".

        Raises RecipeError when the model misses the limit as it came, or at the first setting.
        """
        self.check(model)
        torch.set_num_threads(context.threads)
        given, held = hold_out(context, model, self.judge_every, self.samples)
        judge = Judge(context.teacher, held, context.seed)
        tried = [Trial(0.0, judge.checks(model, self._limit()), model.parameters())]
        if not tried[0].within:
            raise RecipeError(f"prune_until: the limit is missed by the model as it came: {tried[0].describe()}")
        found = self._search(model, given, judge, tried)
        if found is None:
            raise RecipeError(
                f"prune_until: the limit is missed by the first setting: {tried[-1].describe()}; lower first or the "
                "limit, or choose another method"
            )
        zeros, student, change = found
        dense = {name: judge.dense[name] for name in self._limit()}
        trials = Trials(tuple(tried), zeros, dense, f"{self._name()}, judged on {judge.samples} samples held out")
        lines = [f"prune_until: {trial.describe()}" for trial in tried]
        history = (*model.history, repr(self), *lines, student.history[-1])
        missed = next((trial for trial in tried if not trial.within), None)
        stop = f"zeros {missed.zeros:g} missed the limit" if missed else f"the most that was asked for, {self.most:g}"
        why = f"zeros {zeros:g} taken after {len(tried) - 1} trials ({stop}); {change.why}"
        return replace(student, history=history), Change(
            "prune_until", change.changed, why, {**change.details, "search": trials.to_json()}
        )

    def _search(
        self, model: Model, context: ReduceContext, judge: Judge, tried: list[Trial]
    ) -> tuple[float, Model, Change] | None:
        """The last setting within the limit with its model; None when the first misses it. Adds to `tried`."""
        levels = self.levels()

        def told(text: str, done: float, total: float) -> None:
            context.progress(f"trial {len(tried)}: {text}", len(tried) - 1 + done / max(total, 1), len(levels))

        make = self._maker(model, replace(context, progress=told))
        good: tuple[float, Model, Change] | None = None

        def attempt(zeros: float) -> bool:
            nonlocal good
            student, change = make(zeros)
            counts = (change.details["zeros"], change.details["weights"]) if self._step_name() == "prune" else ()
            tried.append(Trial(zeros, judge.checks(student, self._limit()), student.parameters(), *counts))
            if tried[-1].within:
                good = (zeros, student, change)
            return tried[-1].within

        missed = next((zeros for zeros in levels if not attempt(zeros)), None)
        for _ in range(self.halvings):
            if good is None or missed is None:
                break
            middle = round((good[0] + missed) / 2, 9)
            missed = missed if attempt(middle) else middle
        context.progress("prune_until", 1, 1)
        return good

    def _maker(self, model: Model, context: ReduceContext) -> Maker:
        """What prunes to a share of zeros; one scan serves all shares where the layers' sensitivity guides."""
        start = self.step(self.levels()[0])
        if not isinstance(start, Prune) or self.allocation != "sensitivity":
            return lambda zeros: self.step(zeros).apply(model, context)
        chosen = method(start.method)
        work = Work(layers(model, start.exclude), chosen, start.pattern_of(chosen))
        grid = (*(level for level in _GRID if level < self.most), self.most)
        curves = loss_curves(model, work, context, grid)
        sizes = {layer.name: layer.matrix().numel() for layer in work.layers}

        def guided(zeros: float) -> tuple[Model, Change]:
            step = self.step(zeros)
            assert isinstance(step, Prune)
            ends = bounds(zeros, 1.0 if step.spread is None else step.spread, self.most)
            return step.pruned(model, context, shares(curves, sizes, zeros, *ends))

        return guided

    def _limit(self) -> Mapping[str, float]:
        return self.limit if isinstance(self.limit, dict) else {"quality": self.limit}

    def _step_name(self) -> str:
        return STRUCTURED[self.pattern][0] if self.pattern in STRUCTURED else "prune"

    def _name(self) -> str:
        said = name_of(self.method) if self.method else "default method"
        return f"{said}, {self.pattern}, {self.allocation}"
