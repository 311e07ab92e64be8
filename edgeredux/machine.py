"""What can be read of the machine that measures: who it is, how busy others keep it, how hot and how throttled.

Everything is read from /proc and /sys where they exist; what cannot be read is absent, never guessed.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROC = Path("/proc")
SYS = Path("/sys")
SHORTEST_S = 0.5  # the kernel counts CPU time in ticks of 10 ms; over less than this its shares mean nothing


def read(path: Path) -> str | None:
    """The file's text, or None where there is none or it may not be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def cpu_model() -> str:
    """The processor's name, e.g. "AMD EPYC 9354"; the architecture where the system does not say."""
    for line in (read(PROC / "cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_mb() -> float | None:
    """Installed memory in MB (10^6 bytes)."""
    for line in (read(PROC / "meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def governors() -> list[str]:
    """The distinct frequency governors of the cores; empty where cpufreq is absent (most virtual machines)."""
    found = {read(path) for path in SYS.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")}
    return sorted(name for name in found if name)


def temperatures_c() -> dict[str, float]:
    """Degrees Celsius by thermal zone."""
    found: dict[str, float] = {}
    for zone in sorted(SYS.glob("class/thermal/thermal_zone*")):
        text = read(zone / "temp")
        if text and text.lstrip("-").isdigit():
            found[f"{zone.name}:{read(zone / 'type') or 'unknown'}"] = int(text) / 1000
    return found


def throttle_events() -> int | None:
    """Thermal throttling events since boot, summed over cores; None where the kernel does not count them."""
    texts = [read(path) for path in SYS.glob("devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")]
    counts = [int(text) for text in texts if text and text.isdigit()]
    return sum(counts) if counts else None


@dataclass(frozen=True)
class _Ticks:
    busy: float
    steal: float


def _ticks() -> _Ticks | None:
    """Seconds all cores were busy, and seconds the hypervisor took, since boot."""
    for line in (read(PROC / "stat") or "").splitlines():
        if line.startswith("cpu "):
            user, nice, system, _idle, _wait, irq, soft, steal = (int(x) for x in line.split()[1:9])
            hertz = os.sysconf("SC_CLK_TCK")
            return _Ticks((user + nice + system + irq + soft) / hertz, steal / hertz)
    return None


def _own_cpu_s() -> float:
    """CPU seconds of this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@dataclass
class Watch:
    """Observes the machine between `start` and `stop`.

    `stop` returns the facts: cpu_model, cores, platform, seconds, and where readable governor, load_1m_before/after,
    others_cores (cores kept busy by other processes meanwhile) and steal_share if it took at least `SHORTEST_S`,
    temperature_c_before/after and throttle_events meanwhile.
    """

    _facts: dict[str, Any] = field(default_factory=dict)
    _begun: tuple[float, float, _Ticks | None, int | None] | None = None

    def start(self) -> Watch:
        """Note where the counters stand."""
        self._facts = {"cpu_model": cpu_model(), "cores": cores(), "platform": platform.platform()}
        if found := governors():
            self._facts["governor"] = ", ".join(found)
        if hasattr(os, "getloadavg"):
            self._facts["load_1m_before"] = round(os.getloadavg()[0], 2)
        if heat := temperatures_c():
            self._facts["temperature_c_before"] = heat
        self._begun = (time.monotonic(), _own_cpu_s(), _ticks(), throttle_events())
        return self

    def stop(self) -> dict[str, Any]:
        """The facts about the time since `start`."""
        assert self._begun is not None, "stop without start"
        began, own_before, ticks_before, throttled_before = self._begun
        wall, own, ticks = time.monotonic() - began, _own_cpu_s() - own_before, _ticks()
        self._facts["seconds"] = round(wall, 3)
        if ticks and ticks_before and wall >= SHORTEST_S:
            self._facts["others_cores"] = round(max(0.0, ticks.busy - ticks_before.busy - own) / wall, 2)
            self._facts["steal_share"] = round((ticks.steal - ticks_before.steal) / wall / self._facts["cores"], 3)
        if hasattr(os, "getloadavg"):
            self._facts["load_1m_after"] = round(os.getloadavg()[0], 2)
        if heat := temperatures_c():
            self._facts["temperature_c_after"] = heat
        throttled = throttle_events()
        if throttled is not None and throttled_before is not None:
            self._facts["throttle_events"] = throttled - throttled_before
        return dict(self._facts)


@dataclass
class PeakMemory:
    """Peak resident memory of this process above where it stood at `start`.

    On Linux the kernel's high-water mark is reset first (clear_refs) and read from VmHWM. ru_maxrss will not do: it
    survives exec, so a child would report its parent's peak.
    """

    how: str = ""
    _base: float = 0.0

    def start(self) -> PeakMemory:
        """Reset the high-water mark and remember the present resident size."""
        status = _status_kb()
        if status is None:
            self._base = _maxrss_mb()
            self.how = "growth of ru_maxrss"
            return self
        try:
            (PROC / "self" / "clear_refs").write_text("5")
            self.how = "VmHWM after reset"
        except OSError:
            self.how = "VmHWM without reset"
        fresh = _status_kb()
        assert fresh is not None
        self._base = fresh["VmRSS"] * 1024 / 1e6
        return self

    def mb(self) -> float:
        """MB (10^6 bytes) at the peak above the start."""
        status = _status_kb()
        peak = _maxrss_mb() if status is None else status["VmHWM"] * 1024 / 1e6
        return max(0.0, peak - self._base)


def _status_kb() -> dict[str, int] | None:
    text = read(PROC / "self" / "status")
    if text is None:
        return None
    found = {line.split(":")[0]: line.split() for line in text.splitlines()}
    if "VmHWM" not in found or "VmRSS" not in found:
        return None
    return {name: int(found[name][1]) for name in ("VmHWM", "VmRSS")}


def _maxrss_mb() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
