"""The CPU's own energy counter (RAPL) through zeus: Intel and AMD machines that expose it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.agent.energy import Sensor
from edgeredux.meters.sensor import metered
from edgeredux.readings import AnyReading, Missing

_ROOT = Path("/sys/class/powercap")
INSTALL = "zeus is not installed (pip install 'edgeredux[energy]')"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ZeusCpu:
    """Energy of the package this process runs on, above that of an idle window just before, per call.

    zeus watches the counter for wrapping; one that stands still or jumps back all the same gives no number.
    """

    def available(self) -> str | None:
        """None when the counter can be read, else why not."""
        if importlib.util.find_spec("zeus") is None:
            return INSTALL
        counters = sorted(_ROOT.glob("intel-rapl:*/energy_uj")) or sorted(_ROOT.glob("*/energy_uj"))
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

        cpus, index = get_cpus(), get_current_cpu_index()

        def joules() -> float:
            return float(cpus.get_total_energy_consumption(index).cpu_mj) / 1e3

        return metered(Sensor("RAPL package counter through zeus", joules, counts=True), work)
