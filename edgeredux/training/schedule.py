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


def cubic(step: int, begin: int, end: int, final: float) -> float:
    """Share of zeros after update `step`: 0 until `begin`, `final` from `end` on, between them as a cubic.

    final * (1 - (1 - (step - begin) / (end - begin))^3): Zhu and Gupta 2017, eq. 1, and Sanh et al. 2020, section 5.
    """
    if step >= end:
        return final
    return final - final * (1 - max(0, step - begin) / (end - begin)) ** 3
