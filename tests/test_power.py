"""Energy from logs and counters against sums done by hand; sensors that freeze or wrap, clocks that jump."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeredux import android_battery, power_log
from edgeredux.agent import energy
from edgeredux.agent.energy import Sensor, Silent
from edgeredux.measure import energy as measured_energy
from edgeredux.meters import power_csv
from edgeredux.meters.android_battery import AndroidBattery
from edgeredux.meters.jetson import Jetson
from edgeredux.meters.power_csv import VARIABLE, PowerCsv
from edgeredux.meters.sensor import metered
from edgeredux.meters.zeus_gpu import ZeusGpu
from edgeredux.meters.zeus_rapl import ZeusCpu
from edgeredux.power_log import PowerLog, Unusable
from edgeredux.readings import Missing, Reading

T0 = 1_700_000_000.0


def ramp(rows: int = 101, step: float = 0.1) -> PowerLog:
    """Power that is 1 W at T0 and rises by 1 W a second."""
    times = [T0 + step * row for row in range(rows)]
    return PowerLog(times, [1.0 + (t - T0) for t in times])


def test_mean_power_by_hand() -> None:
    # Between 2 s and 5 s the ramp goes from 3 W to 6 W: 4.5 W, 13.5 J; ends between samples are interpolated.
    watts, samples = ramp().mean_watts(T0 + 2, T0 + 5)
    assert watts == pytest.approx(4.5, abs=1e-6)
    assert samples == 31
    assert ramp().mean_watts(T0 + 2.05, T0 + 5.03)[0] == pytest.approx(1 + (2.05 + 5.03) / 2, abs=1e-6)
    # A step from 2 W to 6 W half way: the mean of both, up to the one interval in which it rises.
    times = [T0 + 0.1 * row for row in range(101)]
    log = PowerLog(times, [2.0 + 0.001 * (row % 2) if row < 50 else 6.0 for row in range(101)])
    assert log.mean_watts(T0 + 1, T0 + 9)[0] == pytest.approx(4.0, abs=4 * 0.1 / 8)
    counter = PowerLog(times, [3.0 * (t - T0) for t in times], counts=True)
    assert counter.mean_watts(T0 + 1.5, T0 + 7.25)[0] == pytest.approx(3.0, abs=1e-6)


def changed(log: PowerLog, row: int, *, seconds: float | None = None, value: float | None = None) -> PowerLog:
    times, values = list(log.seconds), list(log.values)
    if seconds is not None:
        times[row:] = [t + seconds for t in times[row:]]
    if value is not None:
        values[row:] = [value] * len(values[row:])
    return PowerLog(times, values, log.counts)


@pytest.mark.parametrize(
    ("log", "end", "words"),
    [
        (ramp(), 3.8, "19 samples in 1.80 s; 20 are needed"),
        (changed(ramp(), 0, value=2.0), 5, "stood still for 3.00 s"),
        (changed(ramp(), 40, seconds=-3600.0), 5, "jumped back by 3599.900 s at sample 41"),
        (changed(ramp(), 40, seconds=5.0), 10, "jumped ahead by 5.100 s"),
        (ramp(40), 5, "does not cover the whole window"),
        (PowerLog(ramp().seconds, [float(row % 50) for row in range(101)], counts=True), 7, "counter went back"),
    ],
)
def test_a_log_that_cannot_be_believed(log: PowerLog, end: float, words: str) -> None:
    with pytest.raises(Unusable, match=words):
        log.mean_watts(T0 + 2, T0 + end)


ISO = datetime.datetime.fromtimestamp(T0 + 1, datetime.UTC).isoformat()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("time,power\n1700000000,1.5\n1700000001,2\n1700", [1.5, 2.0]),  # the last line is being written
        ("Timestamp;Power (mW)\n1700000000000;1500\n1700000001000;2000\n", [1.5, 2.0]),
        ("# a supply\n#time,voltage,current (mA)\n1700000000,5.0,300\n1700000001,5.0,400\n", [1.5, 2.0]),
        ("time (s),mean current (A),mean voltage (V)\n1700000000,0.3,5.0\n1700000001,0.4,5.0\n", [1.5, 2.0]),
        (f"utc\tpower_w\n1700000000\t1.5\n{ISO}\t2\n", [1.5, 2.0]),
    ],
)
def test_columns_by_name_and_unit(tmp_path: Path, text: str, values: list[float]) -> None:
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    log = power_log.read(tmp_path / "log.csv")
    assert list(log.seconds) == [T0, T0 + 1]
    assert list(log.values) == pytest.approx(values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time,temperature\n1,2\n", "no power, no voltage and current, no energy"),
        ("number,power\n1,2\n", "no column is a time"),
        ("time,power\n0.0,2\n0.1,2\n", "cannot be aligned"),
        ("time,power\n1700000000,2\n1700000001,overload\n", "line 3 does not read as numbers"),
        ("", "no line of column names"),
    ],
)
def test_a_file_that_is_no_log(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    with pytest.raises(Unusable, match=words):
        power_log.read(tmp_path / "log.csv")


class World:
    """Time that passes only when somebody sleeps, and a bench supply that logs meanwhile: 2 W, 5 W while work runs."""

    def __init__(self, path: Path, period_s: float = 0.01, offset_s: float = 0.0) -> None:
        self.path, self.period_s, self.offset_s = path, period_s, offset_s
        self.ticks, self.watts, self.jump, self.number = 0, 2.0, 0.0, 0  # ticks of a millisecond
        path.write_text("time,power\n", encoding="utf-8")
        self.sleep(0.2)

    def time(self) -> float:
        return T0 + self.monotonic() + self.jump

    def monotonic(self) -> float:
        return self.ticks / 1000

    def sleep(self, seconds: float) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            for _ in range(round(1000 * seconds)):
                self.ticks += 1
                if self.ticks >= self.number * 1000 * self.period_s:
                    self.number += 1
                    noise = 0.001 * (self.number % 2)
                    file.write(f"{T0 + self.monotonic() + self.offset_s:.6f},{self.watts + noise:.4f}\n")

    def work(self) -> None:
        self.watts = 5.0
        self.sleep(0.02)
        self.watts = 2.0


Made = Callable[..., World]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    def make(**said: float) -> World:
        made = World(tmp_path / "supply.csv", **said)
        monkeypatch.setattr(power_csv, "time", made)
        monkeypatch.setenv(VARIABLE, str(made.path))
        return made

    return make


def test_a_supply_s_log_while_the_model_runs(world: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert VARIABLE in (PowerCsv().available() or "")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.csv"))
    assert "cannot be read" in (PowerCsv().available() or "")
    here = world()
    found = PowerCsv(window_s=2.0).energy_mj(here.work, 1)
    assert isinstance(found, Reading), found
    # 3 W above idle for the 20 ms of a run: 60 mJ; the log knows power once in 10 ms.
    assert found.value == pytest.approx(60, rel=0.02)
    assert (found.n, found.source) == (201, "measured")
    assert "idle 2 W subtracted from 4.99 W, 100 runs" in found.how
    said = measured_energy({"meter": ["csv"]}, None, 1, Missing("nothing counted"))
    assert said == Missing("csv: nothing runs on this machine that a meter could read")


@pytest.mark.parametrize(
    ("said", "options", "words"),
    [
        ({"period_s": 0.1}, {"longest_s": 1}, "its interval is too long for 20 samples in 1 s"),
        ({"offset_s": -3600.0}, {}, "0 samples in 2.00 s"),  # a logger whose clock is an hour behind
        ({"offset_s": -1.0}, {"wait_s": 0}, "does not cover the whole window"),
    ],
)
def test_a_log_that_does_not_fit_the_run(
    world: Made, said: dict[str, float], options: dict[str, float], words: str
) -> None:
    here = world(**said)
    found = PowerCsv(**options).energy_mj(here.work, 1)
    assert isinstance(found, Missing)
    assert words in found.reason


def test_a_clock_that_jumps_meanwhile(world: Made) -> None:
    here = world()

    def work() -> None:
        here.work()
        here.jump = 2.0

    found = PowerCsv().energy_mj(work, 1)
    assert isinstance(found, Missing)
    assert "clock of this machine jumped by 2.000 s" in found.reason


class Counter:
    """A counter of joules in real time: idle at 1 W, at 4 W once the work has begun."""

    def __init__(self) -> None:
        self.watts, self.total, self.at = 1.0, 0.0, time.monotonic()
        self.calls, self.begun = 0, 0.0

    def joules(self) -> float:
        now = time.monotonic()
        self.total += self.watts * (now - self.at)
        self.at = now
        return self.total

    def work(self) -> None:
        self.begun = self.begun or time.monotonic()
        self.watts = 4.0
        self.calls += 1
        time.sleep(0.01)

    def expected_mj(self) -> float:
        """3 W above idle for as long as a call took here; a busy machine sleeps longer than it is asked to."""
        return 3.0 * (self.at - self.begun) / self.calls * 1e3


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_WINDOW_S", 0.2)


def test_a_counter_that_stands_still_or_wraps(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()
    found = metered(Sensor("counter", counter.joules, counts=True), counter.work)
    assert isinstance(found, Reading), found
    assert found.value == pytest.approx(counter.expected_mj(), rel=0.25)
    frozen = metered(Sensor("frozen", lambda: 1.0, counts=True), counter.work)
    assert isinstance(frozen, Missing)
    assert "frozen stood still" in frozen.reason
    back = metered(Sensor("back", lambda: -counter.joules(), counts=True), counter.work)
    assert isinstance(back, Missing)
    assert "jumped back and does not say where it wraps" in back.reason
    monkeypatch.setattr(energy, "_LONGEST_S", 0.5)
    slow = metered(Sensor("slow", lambda: float(int(20 * time.monotonic())), counts=False), counter.work)
    assert isinstance(slow, Missing)
    assert "20 are needed" in slow.reason


DUMPSYS = """Current Battery Service state:
  AC powered: false
  USB powered: {usb}
  Wireless powered: false
  Max charging current: 0
  Charge counter: 2850000
  status: {status}
  health: 2
  present: true
  level: 76
  scale: 100
  voltage: 4012
  temperature: 271
  technology: Li-ion
"""


def phone(status: int = 3, usb: str = "false", rails: str = "-500000\n4000000\n") -> android_battery.Shell:
    def shell(command: str) -> str:
        return DUMPSYS.format(status=status, usb=usb) if command == "dumpsys battery" else rails

    return shell


def test_a_phone_s_battery() -> None:
    said = android_battery.parse_dumpsys(DUMPSYS.format(status=3, usb="false"))
    assert (said["status"], said["voltage"], said["charge counter"]) == ("3", "4012", "2850000")
    found = android_battery.sensor(phone())
    assert found.read() == pytest.approx(2.0)  # 0.5 A out of it at 4 V
    assert not found.counts
    for shell, words in (
        (phone(2, "true"), r"does not discharge \(Charging, usb powered\).*Wi-Fi"),
        (phone(rails=""), "lets nobody read"),
        (phone(rails="-350\n4000000\n"), "not microamperes"),  # a phone that says milliamperes
        (lambda _: "", "no battery service"),
    ):
        with pytest.raises(Silent, match=words):
            android_battery.sensor(shell)


def test_meters_that_are_not_there_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(meter: Any) -> str:
        found = meter.energy_mj(lambda: None, 1)
        assert isinstance(found, Missing)
        return found.reason

    if ZeusGpu().available() is not None:
        assert "GPU" in reason(ZeusGpu()) or "zeus" in reason(ZeusGpu())
    assert "no Jetson" in reason(Jetson()) or "zeus" in reason(Jetson())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install adb" in reason(AndroidBattery())
    (tmp_path / "adb").write_text('#!/bin/sh\necho "adb: no devices/emulators found" >&2\nexit 1\n')
    (tmp_path / "adb").chmod(0o755)
    assert reason(AndroidBattery()) == "adb: adb: no devices/emulators found"


def test_zeus_counters_are_metered(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = pytest.importorskip("zeus.device.cpu")
    gpu = pytest.importorskip("zeus.device.gpu")
    monkeypatch.setattr(ZeusCpu, "available", lambda self: None)
    package, board = Counter(), Counter()

    class Cpus:
        def get_total_energy_consumption(self, index: int) -> Any:
            return SimpleNamespace(cpu_mj=1e3 * package.joules())

    class Gpus:
        def __len__(self) -> int:
            return 1

        def supports_get_total_energy_consumption(self, index: int) -> bool:
            return index == 0

        def get_name(self, index: int) -> str:
            return "NVIDIA H200"

        def get_total_energy_consumption(self, index: int) -> float:
            return 1e3 * board.joules()

    monkeypatch.setattr(cpu, "get_cpus", Cpus)
    monkeypatch.setattr(cpu, "get_current_cpu_index", lambda: 0)
    monkeypatch.setattr(gpu, "get_gpus", Gpus)
    for meter, counter, words in ((ZeusCpu(), package, "RAPL"), (ZeusGpu(), board, "NVML energy counter of NVIDIA")):
        found = meter.energy_mj(counter.work, 1)
        assert isinstance(found, Reading), found
        assert words in found.how
        assert found.n >= 20
        assert found.value == pytest.approx(counter.expected_mj(), rel=0.25)
    assert ZeusGpu(index=1).available() == "there are 1 NVIDIA GPUs, none of number 1"
