"""An NVIDIA GPU's own energy counter (NVML) through zeus."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.agent.energy import Sensor
from edgeredux.errors import one_line
from edgeredux.meters.sensor import metered
from edgeredux.meters.zeus_rapl import INSTALL
from edgeredux.readings import AnyReading, Missing


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ZeusGpu:
    """Energy of the whole board of GPU `index`, above that of an idle window just before, per call.

    The counter exists from Volta on; older GPUs, and virtual ones, say no.
    """

    index: Annotated[int, Field(ge=0)] = 0

    def available(self) -> str | None:
        """None when the counter can be read, else why not."""
        if importlib.util.find_spec("zeus") is None:
            return INSTALL
        from zeus.device.gpu import get_gpus

        try:
            gpus = get_gpus()
            if self.index >= len(gpus):
                return f"there are {len(gpus)} NVIDIA GPUs, none of number {self.index}"
            if not gpus.supports_get_total_energy_consumption(self.index):
                return f"{gpus.get_name(self.index)} has no energy counter (NVML)"
        except Exception as problem:  # zeus raises classes of NVML's and of its own
            return one_line(f"no NVIDIA GPU can be read: {problem}", 200)
        return None

    def energy_mj(self, work: Callable[[], None], repeats: int) -> AnyReading:
        """Millijoules per call; Missing where the window holds too few counter updates or nothing is above idle."""
        reason = self.available()
        if reason is not None:
            return Missing(reason)
        from zeus.device.gpu import get_gpus

        gpus = get_gpus()
        name = f"NVML energy counter of {gpus.get_name(self.index)} through zeus"

        def joules() -> float:
            return float(gpus.get_total_energy_consumption(self.index)) / 1e3

        return metered(Sensor(name, joules, counts=True), work)
