"""Learning rate by step, as a share of the peak: a function of the step alone, so that a resumed run agrees."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

Schedule: TypeAlias = Literal["linear", "cosine", "constant"]


def share(schedule: Schedule, step: int, steps: int, warmup: float) -> float:
    """Of the peak learning rate at update `step` (0 is the first) of `steps`.

    All rise linearly over the first `warmup` share of the steps (at least one), reaching 1 at its end. Then "linear"
    falls to 0, "cosine" is (1 + cos(pi * t)) / 2 with t from 0 to 1 (Loshchilov and Hutter 2017, eq. 5, one cycle),
    "constant" stays 1.
    """
    ramp = max(1, int(warmup * steps))
    if step < ramp:
        return (step + 1) / ramp
    if schedule == "constant":
        return 1.0
    left = max(0.0, (steps - step) / max(1, steps - ramp))
    return left if schedule == "linear" else (1 + math.cos(math.pi * (1 - left))) / 2
