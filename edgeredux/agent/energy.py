"""Energy by the device's own sensors: RAPL counters, INA power monitors, a battery that discharges. Idle subtracted.

A sensor counts when it gave at least 20 updates while the model ran; one that stands still, or jumps back without
saying where it wraps, gives a reason and no number. Time is the monotonic clock's.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeredux import machine

if TYPE_CHECKING:
    from collections.abc import Callable

SYS = Path("/sys")
UPDATES = 20
_WINDOW_S = 2.0
_LONGEST_S = 30.0
_WHOLE_BOARD = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")  # what Jetson boards call the rail that feeds everything


class Sensor(NamedTuple):
    """`read` gives joules so far (`counts`) or watts now; `wraps_j` is where a counter starts again."""

    name: str
    read: Callable[[], float]
    counts: bool
    wraps_j: float | None = None


class Silent(Exception):
    """Why a sensor gives no number."""


def _number(path: Path) -> float:
    return float(path.read_text(encoding="ascii").strip())


def _text(path: Path) -> str:
    return machine.read(path) or ""


def find(root: Path = SYS) -> Sensor:
    """The best sensor there is: a power monitor of the whole board, a discharging battery, RAPL. Raises Silent."""
    reasons = []
    for look in (_monitor, _battery, _rapl):
        try:
            return look(root)
        except Silent as problem:
            reasons.append(str(problem))
    raise Silent("; ".join(reasons))


def _monitor(root: Path) -> Sensor:
    rails: dict[str, Callable[[], float]] = {}
    for chip in sorted(root.glob("class/hwmon/hwmon*")):
        if not _text(chip / "name").startswith("ina"):
            continue
        for power in sorted(chip.glob("power[0-9]_input")):
            rails[f"{chip.name} {power.name}"] = _scaled(1e-6, power)
        for current in sorted(chip.glob("curr[0-9]_input")):
            volts = chip / current.name.replace("curr", "in")
            label = _text(chip / volts.name.replace("_input", "_label"))
            if volts.is_file() and not (chip / current.name.replace("curr", "power")).is_file():
                rails[label or f"{chip.name} {current.name}"] = _scaled(1e-6, volts, current)
    whole = [name for name in rails if name in _WHOLE_BOARD] or (list(rails) if len(rails) == 1 else [])
    if not whole:
        named = " ({}: none is known to feed the whole board)".format(", ".join(rails)) if rails else ""
        raise Silent(f"no INA power monitor{named}")
    return Sensor("INA power monitor " + whole[0], rails[whole[0]], counts=False)


def _scaled(factor: float, *paths: Path) -> Callable[[], float]:
    def read() -> float:
        value = factor
        for path in paths:
            value *= _number(path)
        return abs(value)  # some batteries count what flows out as negative

    return read


def _battery(root: Path) -> Sensor:
    for battery in sorted(root.glob("class/power_supply/*")):
        if _text(battery / "type") != "Battery":
            continue
        if _text(battery / "status") != "Discharging":
            raise Silent(f"battery {battery.name} does not discharge: unplug the device")
        if (battery / "power_now").is_file():
            read = _scaled(1e-6, battery / "power_now")
        elif (battery / "current_now").is_file() and (battery / "voltage_now").is_file():
            read = _scaled(1e-12, battery / "current_now", battery / "voltage_now")
        else:
            raise Silent(f"battery {battery.name} tells neither power nor current")
        return Sensor("battery " + battery.name, read, counts=False)
    raise Silent("no battery")


def _rapl(root: Path) -> Sensor:
    zones = [
        z for z in sorted(root.glob("class/powercap/intel-rapl:[0-9]*")) if _text(z / "name").startswith("package")
    ]
    if not zones:
        raise Silent("no CPU energy counter (RAPL)")
    if len(zones) > 1:
        raise Silent(f"{len(zones)} CPU packages: RAPL of several is not added up")
    try:
        _number(zones[0] / "energy_uj")
    except OSError as problem:
        raise Silent(f"CPU energy counter (RAPL) cannot be read: {problem.strerror}") from problem
    limit = _text(zones[0] / "max_energy_range_uj")
    return Sensor(
        "RAPL " + _text(zones[0] / "name"),
        _scaled(1e-6, zones[0] / "energy_uj"),
        counts=True,
        wraps_j=int(limit) / 1e6 if limit.isdigit() else None,
    )


class Sampler(threading.Thread):
    """Keeps (seconds, value) of each change of a sensor until it is stopped."""

    def __init__(self, sensor: Sensor) -> None:
        super().__init__(daemon=True)
        self.sensor = sensor
        self.changes: list[tuple[float, float]] = []
        self.failure: str | None = None
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.is_set():
            try:
                value = self.sensor.read()
            except (OSError, ValueError, Silent) as problem:
                self.failure = str(problem)
                return
            if not self.changes or value != self.changes[-1][1]:
                self.changes.append((time.monotonic(), value))
            self._end.wait(0.005)

    def stop(self) -> None:
        self._end.set()
        self.join()


def watts(sensor: Sensor, changes: list[tuple[float, float]], seconds: float) -> float:
    """Mean power over the changes a sensor showed in `seconds`. Raises Silent when they do not carry one."""
    if len(changes) < 2:
        raise Silent(f"{sensor.name} stood still for {seconds:.1f} s")
    if len(changes) < UPDATES:
        raise Silent(f"{sensor.name} gave {len(changes)} updates in {seconds:.1f} s; {UPDATES} are needed")
    span = changes[-1][0] - changes[0][0]
    total = 0.0
    for (began, before), (ended, after) in zip(changes, changes[1:]):
        if not sensor.counts:
            total += before * (ended - began)
            continue
        step = after - before
        if step < 0:
            if sensor.wraps_j is None:
                raise Silent(f"{sensor.name} jumped back and does not say where it wraps")
            step += sensor.wraps_j
        if step < 0:
            raise Silent(f"{sensor.name} jumped back by more than its range")
        total += step
    return total / span


def _watch(sensor: Sensor, work: Callable[[], Any]) -> tuple[float, float, int, int]:
    """Mean watts, seconds and calls while `work` repeats for the window, and how many updates the sensor gave."""
    sampler = Sampler(sensor)
    sampler.start()
    began, calls = time.monotonic(), 0
    while True:
        work()
        calls += 1
        seconds = time.monotonic() - began
        enough = len(sampler.changes) > UPDATES and seconds >= _WINDOW_S
        still = len(sampler.changes) < 2 and seconds >= 3 * _WINDOW_S
        if enough or still or seconds >= _LONGEST_S or sampler.failure:
            break
    sampler.stop()
    if sampler.failure:
        raise Silent(f"{sensor.name}: {sampler.failure}")
    return watts(sensor, sampler.changes, seconds), seconds, calls, len(sampler.changes)


def of_each(work: dict[str, Callable[[], Any]], root: Path = SYS) -> dict[str, Any]:
    """By label {"mj", "n", "how"} for one call, or {"missing": reason}."""
    try:
        sensor = find(root)
    except Silent as problem:
        return {label: {"missing": str(problem)} for label in work}
    return by(sensor, work)


def by(sensor: Sensor, work: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """As `of_each`, by one sensor: its idle power is taken once before, and subtracted."""
    try:
        idle, _, _, _ = _watch(sensor, lambda: time.sleep(0.02))
    except Silent as problem:
        return {label: {"missing": str(problem)} for label in work}
    found: dict[str, Any] = {}
    for label, call in work.items():
        try:
            busy, seconds, calls, updates = _watch(sensor, call)
        except Silent as problem:
            found[label] = {"missing": str(problem)}
            continue
        net = (busy - idle) * seconds / calls * 1e3
        if net <= 0:
            said = f"{sensor.name}: {busy:.3g} W while it ran, {idle:.3g} W idle: no difference to attribute"
            found[label] = {"missing": said}
        else:
            how = f"{sensor.name}, {updates} updates, idle {idle:.3g} W subtracted from {busy:.3g} W, {calls} runs"
            found[label] = {"mj": net, "n": updates, "how": how}
    return found
