"""How a training run goes, apart from the model, the data and the loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from edgeredux.training.schedule import Schedule

Optimizer: TypeAlias = Literal["adamw", "sgd"]
Precision: TypeAlias = Literal["float32", "bfloat16"]
_BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Settings:
    """`steps` updates, each of the mean gradient of `accumulate` batches, clipped to the norm `clip` (0: not clipped).

    `precision` "bfloat16" runs forward passes under autocast; weights, gradients and optimizer state stay float32.
    `momentum` belongs to sgd alone; AdamW has betas 0.9 and 0.999. `checkpoint_every` counts updates.
    """

    steps: int
    learning_rate: float
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "linear"
    warmup: float = 0.1
    accumulate: int = 1
    precision: Precision = "float32"
    clip: float = 1.0
    checkpoint_every: int = 25

    def make_optimizer(self, weights: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over `weights`; one tensor at a time, so that results do not hang on how they are grouped."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                weights, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay, foreach=False
            )
        return torch.optim.AdamW(
            weights, lr=self.learning_rate, betas=_BETAS, weight_decay=self.weight_decay, foreach=False
        )
