"""Gradual magnitude pruning on a cubic schedule (Zhu and Gupta 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from edgeredux.errors import ModelError
from edgeredux.sparse_training.allocation import Allocation, zeros_by_layer
from edgeredux.sparse_training.step import STRICT, Plan, SparseTraining
from edgeredux.sparse_training.weights import Weight
from edgeredux.sparsity.asked import check_zeros, known_pattern, zeros_asked
from edgeredux.sparsity.patterns import Pattern, parse
from edgeredux.training.callback import Callback, Run
from edgeredux.training.schedule import cubic


@dataclass(frozen=True, config=STRICT)
class Gradual(SparseTraining):
    """Train while zeros rise from none to `zeros`, in any `pattern`; smallest squared magnitudes go.

    From `begin` to `end`, shares of the steps, the zeros rise every `update_every` updates; then the mask is fixed. n:m
    says its zeros itself. `allocation` shares them among layers; what a pattern of larger cells cannot take of a
    layer's share is left (floor).
    """

    zeros: Annotated[float, Field(gt=0, lt=1)] | None = None
    pattern: str = "unstructured"
    allocation: Allocation = "uniform"
    begin: Annotated[float, Field(ge=0, lt=1)] = 0.1
    end: Annotated[float, Field(gt=0, le=1)] = 0.75
    update_every: Annotated[int, Field(ge=1)] = 20

    name: ClassVar[str] = "gradual"

    @field_validator("pattern")
    @classmethod
    def _pattern_is_known(cls, value: str) -> str:
        return known_pattern(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Gradual:
        check_zeros(self.pattern, self.zeros, self.allocation)
        if self._times()[1] < 1:
            raise ValueError(
                f"no update every {self.update_every} steps fits between {self.begin:g} and {self.end:g} of "
                f"{self.steps} steps; lower update_every"
            )
        return self

    @property
    def share(self) -> float:
        """The zeros asked for: 0.9 unless said."""
        return zeros_asked(self.pattern, self.zeros, 0.9)

    def _times(self) -> tuple[int, int]:
        """First step of the schedule and the number of rises after it."""
        begin = int(self.begin * self.steps)
        last = min(int(self.end * self.steps), self.steps - 1)
        return begin, (last - begin) // self.update_every

    def plan(self, weights: Sequence[Weight], seed: int) -> Plan:
        """No mask at first, and the callback that adds zeros."""
        pattern = parse(self.pattern)
        for weight in weights:
            misfit = pattern.misfit(*weight.matrix(weight.value).shape)
            if misfit is not None:
                raise ModelError(f"gradual: pattern {self.pattern} does not fit {weight.layer}: {misfit}; exclude it")
        begin, updates = self._times()
        times = [begin + number * self.update_every for number in range(1, updates + 1)]
        zeros = {step: cubic(step, begin, begin + updates * self.update_every, self.share) for step in times}
        stages = {step: self._removed(weights, pattern, share) for step, share in zeros.items()}
        return Plan(callbacks=[Rise(pattern, weights, stages)])

    def _removed(self, weights: Sequence[Weight], pattern: Pattern, zeros: float) -> dict[str, int]:
        """Steps of the pattern to remove of each weight."""
        if pattern.window and zeros == self.share:  # m - n, which a rounded share could miss
            return {weight.name: pattern.window - pattern.kept for weight in weights}
        counts = zeros_by_layer({weight.name: weight.value.shape for weight in weights}, zeros, self.allocation)
        removed = {}
        for weight in weights:
            steps = pattern.steps(*weight.matrix(weight.value).shape)
            removed[weight.name] = counts[weight.name] * steps // weight.value.numel()
        return removed


class Rise(Callback):
    """At each stage's step, after its update, the smallest cells of every weight are masked, as many as it says."""

    name = "gradual"

    def __init__(self, pattern: Pattern, weights: Sequence[Weight], stages: Mapping[int, Mapping[str, int]]) -> None:
        self._pattern, self._stages = pattern, stages
        self._weights = {weight.name: weight for weight in weights}

    def on_step(self, run: Run) -> None:
        """What is masked already is zero, so it is among the smallest and stays."""
        for name, removed in self._stages.get(run.step, {}).items():
            weight = self._weights[name]
            mask = self._pattern.mask(weight.matrix(weight.value.detach()).square(), removed)
            run.change_mask(name, weight.stored(mask))
