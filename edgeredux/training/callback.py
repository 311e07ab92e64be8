"""What a training run lets others do: look at dense gradients, change masks and weights after an update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edgeredux.training.masks import Masks
from edgeredux.training.settings import Settings


@dataclass
class Run:
    """A run in progress, as callbacks see it. `step` counts updates from 0; `learning_rate` is this update's."""

    settings: Settings
    weights: Mapping[str, torch.nn.Parameter]
    masks: Masks
    optimizer: torch.optim.Optimizer
    step: int = 0
    learning_rate: float = 0.0

    def change_mask(self, name: str, zero: torch.Tensor) -> None:
        """The new mask of one weight (True = zero), in force at once, optimizer state included."""
        self.masks.change(name, zero, self.optimizer)


class Callback:
    """Called at every update. Override what is needed; what `state` gives is kept in checkpoints.

    A callback draws random numbers from a generator of its own whose state is part of `state`, or from the step's
    number, so that a resumed run agrees with one that was never killed.
    """

    name = "callback"

    def on_start(self, run: Run) -> None:
        """Before the first update of a fresh run, never of a resumed one: masks may be set here."""

    def on_gradients(self, run: Run) -> None:
        """`run.weights[name].grad` holds the mean gradient of the update, of masked weights too, not yet clipped."""

    def on_step(self, run: Run) -> None:
        """After the update. Masks and weights may be changed (masks with `run.change_mask`): masked weights are 0."""

    def state(self) -> dict[str, torch.Tensor]:
        """All that later calls depend on."""
        return {}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave."""
