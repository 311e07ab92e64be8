"""RigL (Evci et al. 2020): drop the smallest weights, grow those whose gradient is largest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass

from edgeredux.errors import ModelError
from edgeredux.sparse_training.masked import Moving
from edgeredux.sparse_training.step import STRICT, Plan
from edgeredux.sparse_training.weights import Weight


@dataclass(frozen=True, config=STRICT)
class Rigl(Moving):
    """Train under a mask that follows the gradient: smallest magnitudes out, largest dense gradients in."""

    name: ClassVar[str] = "rigl"

    def plan(self, weights: Sequence[Weight], seed: int) -> Plan:
        """The first masks, and the callback that moves them."""
        names = [weight.name for weight in weights]
        return replace(super().plan(weights, seed), callbacks=[self.replacement(_gradient, names, seed)])


def _gradient(weight: torch.nn.Parameter, _: torch.Generator) -> torch.Tensor:
    if weight.grad is None:
        raise ModelError("rigl: a sparse layer got no gradient, so nothing can grow there; exclude it")
    return weight.grad.detach().abs()
