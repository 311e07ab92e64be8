"""Energy from what a run does: multiply-accumulates, bytes moved, time; each coefficient has a source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.readings import AnyReading, Missing, Reading


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Coefficient:
    """A figure with its unit and where it is from."""

    value: Annotated[float, Field(ge=0)]
    source: str
    unit: str = ""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class EnergyModel:
    """E = sum(MACs * pJ/MAC) + sum(bytes * pJ/byte) + static power * time. Always `estimated`; `error` says how well.

    What the activity has and the coefficients lack makes the estimate Missing: nothing is left out in silence.
    """

    pj_per_mac: dict[str, Coefficient]
    pj_per_byte: dict[str, Coefficient]
    static_mw: Coefficient | None = None
    error: str = "error unknown"
    activity: Any = None  # measure.Activity

    def available(self) -> str | None:
        """Why no estimate can be made, or None."""
        if self.activity is None:
            return "what one run does is not known"
        for name in self.activity.macs:
            if name not in self.pj_per_mac:
                return f"no coefficient for {name} multiply-accumulates. There are: {', '.join(self.pj_per_mac)}"
        for name, moved in self.activity.bytes_moved.items():
            if moved and name not in self.pj_per_byte:
                return f"no coefficient for bytes of {name}. There are: {', '.join(self.pj_per_byte)}"
        return None

    def energy_mj(self, work: Callable[[], None] | None, repeats: int) -> AnyReading:
        """Millijoules per run."""
        reason = self.available()
        if reason is not None:
            return Missing(f"energy model: {reason}")
        compute = sum(count * self.pj_per_mac[name].value for name, count in self.activity.macs.items())
        moved = sum(count * self.pj_per_byte[name].value for name, count in self.activity.bytes_moved.items() if count)
        static_mj = 0.0
        if self.static_mw is not None:
            static_mj = self.static_mw.value * self.activity.latency_ms / 1000
        how = (
            f"energy model: compute {compute / 1e9:.3g} mJ + data {moved / 1e9:.3g} mJ"
            + (f" + static {static_mj:.3g} mJ" if self.static_mw is not None else ", static power not counted")
            + f"; {self.error}"
        )
        return Reading(compute / 1e9 + moved / 1e9 + static_mj, "mJ", "estimated", how=how)
