"""What meters that read a sensor here and now do alike: idle first, then the work, at least 20 updates of it."""

from __future__ import annotations

from collections.abc import Callable

from edgeredux.agent import energy
from edgeredux.readings import AnyReading, Missing, Reading


def metered(sensor: energy.Sensor, work: Callable[[], None]) -> AnyReading:
    """Millijoules per call of `work` above idle; Missing where the sensor froze, wrapped or gave too few updates."""
    said = energy.by(sensor, {"work": work})["work"]
    if "missing" in said:
        return Missing(said["missing"])
    return Reading(said["mj"], "mJ", "measured", n=said["n"], how=said["how"])
