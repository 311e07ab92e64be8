"""The rounds of an interleaved measurement, timed: here and, gone along with the agent, on devices."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any

from edgeredux import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def timed(
    calls: Mapping[str, Callable[[int], object]], rounds: int, warmup: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Milliseconds by label, one a round, and the facts about the machine meanwhile.

    A call gets the round's number. `warmup` unmeasured rounds come first. Garbage collection is off while the clock
    runs.
    """
    for number in range(warmup):
        for call in calls.values():
            call(number)
    samples: dict[str, list[float]] = {label: [] for label in calls}
    watch = machine.Watch().start()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for label in turn(list(calls), number):
                began = time.perf_counter_ns()
                calls[label](number)
                samples[label].append((time.perf_counter_ns() - began) / 1e6)
    finally:
        if collecting:
            gc.enable()
    return samples, watch.stop()


def turn(labels: Sequence[str], number: int) -> list[str]:
    """The order of round `number`: every other round backwards, each pair of rounds one place further on."""
    shift = (number // 2) % len(labels)
    order = [*labels[shift:], *labels[:shift]]
    return order[::-1] if number % 2 else order
