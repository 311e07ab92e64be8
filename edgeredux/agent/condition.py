"""Clocks and throttling of the device before and after; what it does not say is absent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SYS = Path("/sys")
# Bits of a Raspberry Pi's get_throttled that hold now (its firmware's documentation of `vcgencmd get_throttled`).
_PI_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_PI_FIRMWARE = "devices/platform/soc*/soc*firmware/get_throttled"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def now(root: Path = SYS) -> dict[str, Any]:
    """clock_mhz by core, clock_limit_mhz (the highest the cores may go), firmware's throttling flags."""
    found: dict[str, Any] = {}
    clocks, limits = {}, []
    for core in sorted(root.glob("devices/system/cpu/cpu[0-9]*/cpufreq")):
        clock, limit = _read(core / "scaling_cur_freq"), _read(core / "cpuinfo_max_freq")
        if clock and clock.isdigit():
            clocks[core.parent.name] = int(clock) / 1000
        if limit and limit.isdigit():
            limits.append(int(limit) / 1000)
    if clocks:
        found["clock_mhz"] = clocks
    if limits:
        found["clock_limit_mhz"] = max(limits)
    for place in sorted(root.glob(_PI_FIRMWARE)):
        text = _read(place) or ""
        if re.fullmatch(r"(0x)?[0-9a-fA-F]+", text):
            bits = int(text, 16)
            found["firmware_throttling"] = [name for bit, name in _PI_BITS.items() if bits >> bit & 1]
    return found


def between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Both states under names with _before and _after; throttle_events counts new flags of the firmware."""
    found = {}
    for name in ("clock_mhz", "firmware_throttling"):
        if name in before:
            found[name + "_before"] = before[name]
        if name in after:
            found[name + "_after"] = after[name]
    if "clock_limit_mhz" in after:
        found["clock_limit_mhz"] = after["clock_limit_mhz"]
    if "firmware_throttling" in after:
        found["throttle_events"] = len(after["firmware_throttling"])
    return found
