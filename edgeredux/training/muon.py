"""Muon for the matrices inside a network, AdamW for the rest, as one optimizer.

Muon (Jordan et al. 2024; Liu et al. 2025, "Muon is scalable for LLM training", section 2.2) makes every update of a
matrix nearly orthogonal, scaled to the size that AdamW's have, so that both take one learning rate. A small decoder
learns from one look at its texts what takes AdamW about two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class MuonAndAdamW(torch.optim.Optimizer):
    """torch.optim.Muon over `matrices` [rows, columns], torch.optim.AdamW over `rest`, which does not decay."""

    def __init__(
        self,
        matrices: Sequence[torch.nn.Parameter],
        rest: Sequence[torch.nn.Parameter],
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        muon = torch.optim.Muon(
            matrices, lr=learning_rate, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        adamw = torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, foreach=False)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._both = (muon, adamw)
        for each in self._both:
            each.state = self.state
        muon.param_groups, adamw.param_groups = self.param_groups[:1], self.param_groups[1:]

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of every weight that has a gradient; `closure` is not taken."""
        for each in self._both:
            each.step()  # type: ignore[no-untyped-call]
