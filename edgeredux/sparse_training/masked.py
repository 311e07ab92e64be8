"""Masks with an exact count from the first step: where they come from, and how they move during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from edgeredux.sparse_training.allocation import Allocation, zeros_by_layer
from edgeredux.sparse_training.step import STRICT, Plan, SparseTraining
from edgeredux.sparse_training.topology import cosine_share, magnitude_mask, random_mask, replaced
from edgeredux.sparse_training.weights import Weight
from edgeredux.training.callback import Callback, Run

# What new weights of a layer are chosen by, largest first, shaped like the weight; True in the mask = zero.
Growth: TypeAlias = Callable[[torch.nn.Parameter, torch.Generator], torch.Tensor]


@dataclass(frozen=True, config=STRICT)
class Masked(SparseTraining):
    """Exactly floor(zeros * weights) weights are zero after every update, shared among layers by `allocation`.

    `start`: "random" draws which (from the seed), "magnitude" takes the smallest of a model that was trained before.
    """

    zeros: Annotated[float, Field(gt=0, lt=1)] = 0.9
    allocation: Allocation = "erk"
    start: Literal["random", "magnitude"] = "random"

    def plan(self, weights: Sequence[Weight], seed: int) -> Plan:
        """The masks that training starts with."""
        counts = zeros_by_layer({weight.name: weight.value.shape for weight in weights}, self.zeros, self.allocation)
        generator = torch.Generator().manual_seed(seed)
        return Plan(
            {
                weight.name: magnitude_mask(weight.value, counts[weight.name])
                if self.start == "magnitude"
                else random_mask(weight.value.shape, counts[weight.name], generator)
                for weight in weights
            }
        )


@dataclass(frozen=True, config=STRICT)
class Moving(Masked):
    """Every `update_every` updates a share of each layer's weights is dropped and as many are grown, from 0.

    The share falls from `drop` to 0 as a cosine over the first `until` of the steps (Evci et al. 2020, section 3);
    then the mask is fixed.
    """

    drop: Annotated[float, Field(gt=0, le=1)] = 0.3
    update_every: Annotated[int, Field(ge=1)] = 100
    until: Annotated[float, Field(gt=0, le=1)] = 0.75

    def replacement(self, growth: Growth, names: Sequence[str], seed: int) -> Replacement:
        """The callback that moves these weights' masks."""
        return Replacement(self.name, growth, names, seed, self.drop, self.update_every, int(self.until * self.steps))


class Replacement(Callback):
    """Drops by magnitude and grows by `growth`, before the update whose gradients are seen (Evci et al. 2020, alg. 1).

    There the update is left out in such a step; here it follows under the new mask, so no batch is lost.
    """

    def __init__(
        self, name: str, growth: Growth, names: Sequence[str], seed: int, drop: float, every: int, end: int
    ) -> None:
        self.name = name
        self._growth, self._names, self._seed = growth, names, seed
        self._drop, self._every, self._end = drop, every, end

    def on_gradients(self, run: Run) -> None:
        """Move the masks when it is time; dense gradients are read in these steps alone."""
        if run.step == 0 or run.step % self._every or run.step >= self._end:
            return
        share = cosine_share(run.step, self._drop, self._end)
        # A function of seed and step alone, so that a resumed run draws the same.
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + run.step)
        for name in self._names:
            weight, zero = run.weights[name], run.masks.zero[name]
            count = int(share * int((~zero).sum()))
            run.change_mask(name, replaced(weight, zero, count, self._growth(weight, generator)))
