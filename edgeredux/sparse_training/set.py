"""SET, sparse evolutionary training (Mocanu et al. 2018): drop the smallest weights, grow random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass

from edgeredux.sparse_training.masked import Moving
from edgeredux.sparse_training.step import STRICT, Plan
from edgeredux.sparse_training.weights import Weight


@dataclass(frozen=True, config=STRICT)
class Set(Moving):
    """Train under a mask that evolves: smallest magnitudes out, random places in.

    As Evci et al. 2020 run it beside RigL: by magnitude (Mocanu et al. drop the same share among positive and among
    negative weights), with RigL's schedule (there a constant share once an epoch), grown weights at 0.
    """

    name: ClassVar[str] = "set"

    def plan(self, weights: Sequence[Weight], seed: int) -> Plan:
        """The first masks, and the callback that moves them."""
        names = [weight.name for weight in weights]
        return replace(super().plan(weights, seed), callbacks=[self.replacement(_random, names, seed)])


def _random(weight: torch.nn.Parameter, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(weight.shape, generator=generator).to(weight.device)
