"""Penalties whose proximal step shrinks weights to exact zeros, then training of what is left without the penalty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from edgeredux.sparse_training.step import STRICT, Plan, SparseTraining
from edgeredux.sparse_training.weights import Weight
from edgeredux.training.callback import Callback, Run


@dataclass(frozen=True, config=STRICT)
class Shrinking(SparseTraining):
    """After each update the proximal step with threshold learning rate * strength; weights may come back from zero.

    In the last `settle` share of the steps the zeros are fixed and the penalty is off, which takes back the shrinkage
    of the weights that are left (relaxed lasso, Meinshausen 2007).
    """

    strength: Annotated[float, Field(gt=0)] = 0.1
    settle: Annotated[float, Field(ge=0, lt=1)] = 0.25

    def shrunk(self, weight: Weight, threshold: float) -> torch.Tensor:
        """The weight after the proximal step, shaped as it is stored."""
        raise NotImplementedError

    def plan(self, weights: Sequence[Weight], seed: int) -> Plan:
        """No mask at first, and the callback that shrinks."""
        return Plan(callbacks=[Shrink(self, weights, self.steps - int(self.settle * self.steps))])


class Shrink(Callback):
    """The proximal step after every update before `end`; at the last of them the zeros become masks."""

    def __init__(self, method: Shrinking, weights: Sequence[Weight], end: int) -> None:
        self.name = method.name
        self._method, self._weights, self._end = method, weights, end

    def on_step(self, run: Run) -> None:
        """Shrink every weight, then fix its zeros when it is time."""
        if run.step >= self._end:
            return
        for weight in self._weights:
            weight.value.copy_(self._method.shrunk(weight, run.learning_rate * self._method.strength))
            if run.step == self._end - 1:
                run.change_mask(weight.name, weight.value.detach() == 0)
