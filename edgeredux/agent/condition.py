"""Clocks and throttling of the device before and after; what it does not say is absent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgeredux.machine import read

SYS = Path("/sys")
# Bits of a Raspberry Pi's get_throttled that hold now (its firmware's documentation of `vcgencmd get_throttled`).
_PI_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_PI_FIRMWARE = "devices/platform/soc*/soc*firmware/get_throttled"


def now(root: Path = SYS) -> dict[str, Any]:
    """clock_mhz by core, clock_limit_mhz (the highest the cores may go), firmware's throttling flags."""
    found: dict[str, Any] = {}
    clocks, limits = {}, []
    for core in sorted(root.glob("devices/system/cpu/cpu[0-9]*/cpufreq")):
        clock, limit = read(core / "scaling_cur_freq"), read(core / "cpuinfo_max_freq")
        if clock and clock.isdigit():
            clocks[core.parent.name] = int(clock) / 1000
        if limit and limit.isdigit():
            limits.append(int(limit) / 1000)
    if clocks:
        found["clock_mhz"] = clocks
    if limits:
        found["clock_limit_mhz"] = max(limits)
    for place in sorted(root.glob(_PI_FIRMWARE)):
        text = read(place) or ""
        if re.fullmatch(r"(0x)?[0-9a-fA-F]+", text):
            bits = int(text, 16)
            found["firmware_throttling"] = [name for bit, name in _PI_BITS.items() if bits >> bit & 1]
    return found


def between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Both states under names with _before and _after."""
    found = {}
    for name in ("clock_mhz", "firmware_throttling"):
        if name in before:
            found[name + "_before"] = before[name]
        if name in after:
            found[name + "_after"] = after[name]
    if "clock_limit_mhz" in after:
        found["clock_limit_mhz"] = after["clock_limit_mhz"]
    return found
