"""A phone's battery as a power sensor, read through a shell on the phone: what adb can see without root.

The kernel's power_supply class gives microamperes and microvolts (Documentation/ABI/testing/sysfs-class-power); some
phones give milliamperes, so a power that no phone has is refused rather than scaled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from edgeredux.agent.energy import Sensor, Silent

Shell = Callable[[str], str]  # a command line for the phone's shell -> its output
_FOLDER = "/sys/class/power_supply/battery"
LEAST_W, MOST_W = 0.05, 30.0
_STATUS = {"2": "Charging", "3": "Discharging", "4": "Not charging", "5": "Full"}  # BatteryManager.BATTERY_STATUS_*


def parse_dumpsys(text: str) -> dict[str, str]:
    """The lines "key: value" of `dumpsys battery`, keys in lower case."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"\s*([A-Za-z][A-Za-z ]*):\s*(\S.*?)\s*", line)
        if match:
            found[match[1].lower()] = match[2]
    return found


def sensor(shell: Shell) -> Sensor:
    """The battery's power. Raises Silent when the phone charges, is plugged in, or does not say current and voltage."""
    said = parse_dumpsys(shell("dumpsys battery"))
    if not said:
        raise Silent("the phone has no battery service (dumpsys battery says nothing)")
    plugged = [name for name in ("ac powered", "usb powered", "wireless powered") if said.get(name) == "true"]
    status = _STATUS.get(said.get("status", ""), said.get("status", "unknown"))
    if status != "Discharging":
        how = f", {' and '.join(plugged)}" if plugged else ""
        raise Silent(f"the phone's battery does not discharge ({status}{how}): use adb over Wi-Fi and unplug it")
    _watts(shell)
    return Sensor("Android battery", lambda: _watts(shell), counts=False)


def _watts(shell: Shell) -> float:
    values: Mapping[str, str] = dict(
        zip(
            ("current_now", "voltage_now"),
            shell(f"cat {_FOLDER}/current_now {_FOLDER}/voltage_now 2>/dev/null").split(),
            strict=False,
        )
    )
    try:
        current_a, voltage_v = int(values["current_now"]) / 1e6, int(values["voltage_now"]) / 1e6
    except (KeyError, ValueError):
        raise Silent(f"the phone lets nobody read {_FOLDER}/current_now and voltage_now") from None
    power = abs(current_a * voltage_v)  # phones do not agree on the sign of what flows out
    if not LEAST_W <= power <= MOST_W:
        raise Silent(
            f"the phone's battery says {power:.3g} W (current_now {values['current_now']}, voltage_now "
            f"{values['voltage_now']}): not microamperes and microvolts, or not a phone that runs"
        )
    return power
