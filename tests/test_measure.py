"""Interleaved timing, the noise verdict, peak memory, pairing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgeredux import machine, measure
from edgeredux.readings import Missing, Reading
from edgeredux.rounds import turn


def _timing(samples: dict[str, list[float]], **facts: object) -> measure.Timing:
    return measure.Timing({k: tuple(v) for k, v in samples.items()}, 1, 1, 0, facts)


def test_every_label_runs_once_a_round_and_on_the_same_input() -> None:
    seen: list[tuple[str, int]] = []
    calls = {name: (lambda number, name=name: seen.append((name, number))) for name in ("dense", "reduced", "third")}
    timing = measure.interleave(calls, rounds=6, warmup=2, threads=1, inputs=4)
    measured = seen[6:]
    for number in range(6):
        assert sorted(measured[3 * number : 3 * number + 3]) == [(n, number) for n in ("dense", "reduced", "third")]
    assert {len(s) for s in timing.samples_ms.values()} == {6}


def test_each_label_takes_each_place_equally_often() -> None:
    labels = ["a", "b", "c"]
    places = [[turn(labels, number).index(label) for number in range(6)] for label in labels]
    assert all(sorted(place) == [0, 0, 1, 1, 2, 2] for place in places)
    assert turn(["a", "b"], 0) != turn(["a", "b"], 1)


def test_times_are_milliseconds_of_the_call() -> None:
    timing = measure.interleave({"slow": lambda n: time.sleep(0.02)}, rounds=5, warmup=0, threads=1)
    reading = timing.latency("slow", "sleep")
    assert 20 <= reading.value < 40
    assert (reading.n, reading.unit, reading.source) == (5, "ms", "measured")
    assert reading.p10 is not None
    assert reading.p90 is not None
    assert reading.p10 <= reading.value <= reading.p90
    assert "1 thread" in reading.how


def test_calm_run_is_not_noisy() -> None:
    reading = _timing({"dense": [10.0, 10.1, 9.9, 10.0] * 5}, cores=2, others_cores=0.1).latency("dense", "x")
    assert not reading.noisy


@pytest.mark.parametrize(
    ("samples", "facts", "word"),
    [
        ([10.0] * 10 + [15.0] * 10, {}, "p90/p10"),
        ([10.0] * 20, {"cores": 2, "others_cores": 1.4}, "other processes"),
        ([10.0] * 20, {"cores": 2, "steal_share": 0.1}, "hypervisor"),
        ([10.0] * 20, {"throttle_events": 3}, "throttled"),
    ],
)
def test_noise_is_named(samples: list[float], facts: dict[str, object], word: str) -> None:
    reading = _timing({"dense": samples}, **facts).latency("dense", "x")
    assert reading.noisy
    assert word in reading.how


def test_load_that_fits_on_free_cores_is_no_noise() -> None:
    assert not measure.machine_noise({"cores": 16, "others_cores": 3.0}, 4)
    assert measure.machine_noise({"cores": 16, "others_cores": 13.0}, 4)


def test_inputs_of_different_length_are_no_noise() -> None:
    """Short and long texts take different time; only the spread within one input counts."""
    timing = measure.Timing({"dense": (5.0, 20.0) * 10}, 2, 1, 0, {})
    assert timing.spread("dense") == pytest.approx(1.0)
    assert measure.Timing({"dense": (5.0, 20.0) * 10}, 1, 1, 0, {}).spread("dense") == pytest.approx(4.0)


def test_throughput_is_the_inverse_and_keeps_its_source() -> None:
    latency = Reading(20.0, "ms", "simulated", 9, 10.0, 40.0, how="x", noisy=True)
    rate = measure.throughput(latency, 4)
    assert isinstance(rate, Reading)
    assert (rate.value, rate.p10, rate.p90, rate.source, rate.noisy) == (200.0, 100.0, 400.0, "simulated", True)
    assert measure.throughput(Missing("why"), 4) == Missing("why")


def test_paired_ratio_cancels_common_drift() -> None:
    drift = np.linspace(1, 3, 40)
    ratio = measure.paired_ratio(list(4.0 * drift), list(10.0 * drift))
    assert ratio.value == pytest.approx(0.4)
    assert ratio.low == pytest.approx(0.4)
    assert ratio.high == pytest.approx(0.4)
    with pytest.raises(ValueError, match="cannot be paired"):
        measure.paired_ratio([1.0], [1.0, 2.0])


def test_interleave_refuses_nothing_to_time() -> None:
    with pytest.raises(ValueError, match="0 calls"):
        measure.interleave({}, rounds=1, warmup=0, threads=1)


def test_garbage_collection_is_on_again_after_a_failing_call() -> None:
    import gc

    def fail(number: int) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        measure.interleave({"a": fail}, rounds=1, warmup=0, threads=1)
    assert gc.isenabled()


def test_watch_sees_other_processes_but_not_itself() -> None:
    if machine.cores() < 2:
        pytest.skip("needs two cores")
    watch = machine.Watch().start()
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        sum(range(1000))
    alone = watch.stop()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        watch = machine.Watch().start()
        time.sleep(0.7)
        crowded = watch.stop()
    finally:
        other.kill()
        other.wait()
    if "others_cores" not in crowded:
        pytest.skip("this system has no /proc/stat")
    assert crowded["others_cores"] > 0.6
    # The busy loop of this very process is subtracted; others may run beside the tests, but not the loop's full core.
    assert alone["others_cores"] < crowded["others_cores"] + 0.5
    assert crowded["cpu_model"]


def test_shares_of_a_too_short_time_are_absent() -> None:
    facts = machine.Watch().start().stop()
    assert "others_cores" not in facts


def test_machine_facts_come_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for core, governor in (("cpu0", "performance"), ("cpu1", "powersave")):
        folder = tmp_path / "devices/system/cpu" / core
        (folder / "cpufreq").mkdir(parents=True)
        (folder / "thermal_throttle").mkdir()
        (folder / "cpufreq/scaling_governor").write_text(governor)
        (folder / "thermal_throttle/core_throttle_count").write_text("2")
    zone = tmp_path / "class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("48500")
    (zone / "type").write_text("x86_pkg_temp")
    monkeypatch.setattr(machine, "SYS", tmp_path)
    assert machine.governors() == ["performance", "powersave"]
    assert machine.temperatures_c() == {"thermal_zone0:x86_pkg_temp": 48.5}
    assert machine.throttle_events() == 4
    monkeypatch.setattr(machine, "SYS", tmp_path / "absent")
    assert machine.throttle_events() is None


_CHILD = """
from edgeredux.machine import PeakMemory
memory = PeakMemory().start()
block = bytearray({size})
block[::4096] = b"x" * len(block[::4096])
del block
print(memory.mb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_counts_what_was_freed_and_not_the_parents_peak() -> None:
    """ru_maxrss would report this process's 300 MB in the child: it survives fork and exec."""
    ours = bytearray(300_000_000)
    ours[::4096] = b"x" * len(ours[::4096])
    measured = subprocess.run(
        [sys.executable, "-c", _CHILD.format(size=50_000_000)], capture_output=True, text=True, check=True
    )
    del ours
    assert 49 < float(measured.stdout) < 60
