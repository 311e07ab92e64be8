"""The CPU's own energy counter (RAPL) through zeus: Intel and AMD machines that expose it."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.readings import AnyReading, Missing, Reading

_ROOT = Path("/sys/class/powercap")
_PERIOD_S = 0.001  # the counter advances about every millisecond (Intel SDM vol. 3B, 15.10)
_SAMPLES = 20
_WINDOW_S = 2.0


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ZeusCpu:
    """Package energy while `work` repeats, minus that of an idle window just before, per call."""

    window_s: float = _WINDOW_S

    def available(self) -> str | None:
        """None when the counter can be read, else why not."""
        if importlib.util.find_spec("zeus") is None:
            return "zeus is not installed (pip install 'edgeredux[energy]')"
        counters = sorted(_ROOT.glob("intel-rapl:*/energy_uj")) or sorted(
            Path("/sys/class/powercap").glob("*/energy_uj")
        )
        if not counters:
            return "this machine exposes no RAPL energy counter"
        if not all(os.access(path, os.R_OK) for path in counters):
            return "the RAPL energy counter is not readable (it needs root)"
        return None

    def energy_mj(self, work: Callable[[], None], repeats: int) -> AnyReading:
        """Millijoules per call; Missing where the window holds too few counter updates or nothing is above idle."""
        reason = self.available()
        if reason is not None:
            return Missing(reason)
        from zeus.device.cpu import get_cpus, get_current_cpu_index

        cpus = get_cpus()
        index = get_current_cpu_index()

        def counter() -> float:
            return float(cpus.get_total_energy_consumption(index).cpu_mj)

        begin, start = time.perf_counter(), counter()
        time.sleep(self.window_s)
        idle_mw = (counter() - start) / (time.perf_counter() - begin)
        calls, begin, start = 0, time.perf_counter(), counter()
        while time.perf_counter() - begin < self.window_s or calls < repeats:
            work()
            calls += 1
        spent, seconds = counter() - start, time.perf_counter() - begin
        if seconds / _PERIOD_S < _SAMPLES:
            return Missing(f"{seconds:.3f} s are fewer than {_SAMPLES} updates of the counter")
        net = (spent - idle_mw * seconds) / calls
        if net <= 0:
            return Missing("the energy above idle is not positive: the machine was not idle before")
        how = f"RAPL package counter through zeus, {calls} calls in {seconds:.1f} s, idle {idle_mw:.0f} mW subtracted"
        return Reading(net, "mJ", "measured", n=calls, how=how)
