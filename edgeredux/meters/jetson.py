"""A Jetson's own power monitor through zeus: the rail that feeds the whole module."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.agent.energy import Sensor, Silent, find
from edgeredux.meters.sensor import metered
from edgeredux.meters.zeus_rapl import INSTALL
from edgeredux.readings import AnyReading, Missing

_BOARD = Path("/proc/device-tree/model")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Jetson:
    """Energy of the module above that of an idle window just before, per call.

    zeus says that the board is one it knows; the rail itself is read here, because zeus sums it up in a process of its
    own and does not say how often it changed, and 20 updates are asked for.
    """

    def available(self) -> str | None:
        """None when the rail can be read, else why not."""
        if importlib.util.find_spec("zeus") is None:
            return INSTALL
        from zeus.device.soc.jetson import jetson_is_available

        if not jetson_is_available():
            board = _BOARD.read_text(errors="replace").strip("\0 \n") if _BOARD.is_file() else "this machine"
            return f"{board} is no Jetson"
        try:
            find()
        except Silent as problem:
            return str(problem)
        return None

    def energy_mj(self, work: Callable[[], None], repeats: int) -> AnyReading:
        """Millijoules per call; Missing where the sensor gave too few updates or nothing is above idle."""
        reason = self.available()
        if reason is not None:
            return Missing(reason)
        found = find()
        return metered(Sensor(f"{found.name} (Jetson)", found.read, found.counts, found.wraps_j), work)
