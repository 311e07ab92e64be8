"""L1 by proximal steps: soft thresholding after every update makes exact zeros."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass

from edgeredux.sparse_training.proximal import soft_threshold
from edgeredux.sparse_training.shrinking import Shrinking
from edgeredux.sparse_training.step import STRICT
from edgeredux.sparse_training.weights import Weight


@dataclass(frozen=True, config=STRICT)
class L1(Shrinking):
    """Train with the penalty strength * ||W||_1. How many zeros come of it is the outcome, and reported."""

    name: ClassVar[str] = "l1"

    def shrunk(self, weight: Weight, threshold: float) -> torch.Tensor:
        """Soft thresholding of each weight."""
        return soft_threshold(weight.value.detach(), threshold)
