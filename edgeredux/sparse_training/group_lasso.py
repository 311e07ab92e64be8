"""Group lasso by proximal steps: whole output rows, input channels or blocks become exactly zero."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import field_validator
from pydantic.dataclasses import dataclass

from edgeredux.errors import ModelError
from edgeredux.sparse_training.proximal import group_threshold
from edgeredux.sparse_training.shrinking import Shrinking
from edgeredux.sparse_training.step import STRICT, Plan
from edgeredux.sparse_training.weights import Weight

ALLOWED = "outputs, inputs, or a block such as 4x4"


@dataclass(frozen=True, config=STRICT)
class GroupLasso(Shrinking):
    """Train with the penalty strength * sum over groups of sqrt(size) * ||W_g||_2 (Yuan and Lin 2006).

    `groups`: "outputs" (a neuron's or convolution channel's weights), "inputs" (what an input neuron or channel is
    multiplied by), or a block of outputs x inputs such as "4x4". How many zeros come of it is the outcome, reported.
    """

    groups: str = "outputs"

    name: ClassVar[str] = "group_lasso"

    @field_validator("groups")
    @classmethod
    def _groups_are_known(cls, value: str) -> str:
        if value not in ("outputs", "inputs") and not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}", value):
            raise ValueError(f"groups {value!r} are unknown. Allowed: {ALLOWED}")
        return value

    def cell(self, weight: Weight) -> tuple[int, int]:
        """Height and width of a group in the weight's matrix."""
        rows, columns = weight.matrix(weight.value).shape
        if self.groups == "outputs":
            return 1, columns
        if self.groups == "inputs":
            return rows, weight.kernel
        height, _, width = self.groups.partition("x")
        return int(height), int(width)

    def plan(self, weights: Sequence[Weight], seed: int) -> Plan:
        """Raises ModelError for a weight that no whole number of groups covers."""
        for weight in weights:
            (rows, columns), (height, width) = weight.matrix(weight.value).shape, self.cell(weight)
            if rows % height or columns % width:
                raise ModelError(
                    f"group_lasso: groups {self.groups} do not fit {weight.layer}: {rows} outputs x {columns} inputs; "
                    "exclude it"
                )
        return super().plan(weights, seed)

    def shrunk(self, weight: Weight, threshold: float) -> torch.Tensor:
        """Group soft thresholding of each group."""
        matrix = weight.matrix(weight.value.detach())
        return weight.stored(group_threshold(matrix, *self.cell(weight), threshold))
