"""A bench supply or a Joulescope that writes a CSV file while the model runs: aligned by the clock of both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux import power_log
from edgeredux.power_log import PowerLog, Unusable
from edgeredux.readings import AnyReading, Missing, Reading

VARIABLE = "EDGEREDUX_POWER_CSV"
JUMP_S = 0.05  # the wall clock against the monotonic one; more moves a window of seconds by per cents


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PowerCsv:
    """Energy above idle per call, from the file that EDGEREDUX_POWER_CSV names; it has to be written meanwhile.

    Its clock has to be this machine's to within a small part of the window: the logger runs here, or both follow NTP.
    """

    window_s: Annotated[float, Field(gt=0)] = 2.0
    longest_s: Annotated[float, Field(gt=0)] = 30.0
    wait_s: Annotated[float, Field(ge=0)] = 10.0  # for the logger to write what it has taken

    def available(self) -> str | None:
        """None when the file is there and reads as a log, else why not."""
        name = os.environ.get(VARIABLE, "")
        if not name:
            return f"no log of a bench supply is named ({VARIABLE}=FILE.csv)"
        try:
            power_log.read(Path(name))
        except Unusable as problem:
            return f"{name}: {problem}"
        return None

    def energy_mj(self, work: Callable[[], None], repeats: int) -> AnyReading:
        """Millijoules per call; Missing where the log has too few samples, a clock jumped or the sensor froze."""
        reason = self.available()
        if reason is not None:
            return Missing(reason)
        path = Path(os.environ[VARIABLE])
        wanted = max(self.window_s, 1.5 * power_log.SAMPLES * power_log.read(path).interval_s())
        if wanted > self.longest_s:
            return Missing(
                f"{path}: its interval is too long for {power_log.SAMPLES} samples in {self.longest_s:.0f} s"
            )
        clocks = time.time() - time.monotonic()
        idle_from = time.time()
        time.sleep(wanted)
        idle_to = busy_from = time.time()
        calls, begun = 0, time.monotonic()
        while time.monotonic() - begun < wanted or calls < repeats:
            work()
            calls += 1
        busy_to = time.time()
        jump = time.time() - time.monotonic() - clocks
        if abs(jump) > JUMP_S:
            return Missing(f"the clock of this machine jumped by {jump:.3f} s meanwhile")
        try:
            log = self._covering(path, busy_to)
            idle, _ = log.mean_watts(idle_from, idle_to)
            busy, samples = log.mean_watts(busy_from, busy_to)
        except Unusable as problem:
            return Missing(f"{path}: {problem}")
        net = (busy - idle) * (busy_to - busy_from) / calls * 1e3
        if net <= 0:
            return Missing(f"{path}: {busy:.3g} W while it ran, {idle:.3g} W idle: no difference to attribute")
        how = f"{path.name}, {samples} samples, idle {idle:.3g} W subtracted from {busy:.3g} W, {calls} runs"
        return Reading(net, "mJ", "measured", n=samples, how=how)

    def _covering(self, path: Path, end: float) -> PowerLog:
        """The log once it goes past an instant, or as it is when the logger has not come so far in `wait_s`."""
        deadline = time.monotonic() + self.wait_s
        while True:
            log = power_log.read(path)
            if (log.seconds and log.seconds[-1] > end) or time.monotonic() > deadline:
                return log
            time.sleep(0.05)
