"""A phone's battery over adb, while the phone runs the model."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux import android_battery
from edgeredux.agent.energy import Silent
from edgeredux.meters.sensor import metered
from edgeredux.readings import AnyReading, Missing


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AndroidBattery:
    """Energy of the whole phone above idle per call; the screen should be off. The phone is adb's (ANDROID_SERIAL)."""

    timeout_s: float = 5.0

    def available(self) -> str | None:
        """None when the battery of a phone can be read, else why not."""
        if shutil.which("adb") is None:
            return "adb is not installed (apt-get install adb)"
        try:
            android_battery.sensor(self._shell)
        except Silent as problem:
            return str(problem)
        return None

    def energy_mj(self, work: Callable[[], None], repeats: int) -> AnyReading:
        """Millijoules per call; Missing where the battery gave fewer than 20 updates, stood still or charges."""
        reason = self.available()
        if reason is not None:
            return Missing(reason)
        return metered(android_battery.sensor(self._shell), work)

    def _shell(self, command: str) -> str:
        try:
            done = subprocess.run(
                ["adb", "shell", command], capture_output=True, text=True, timeout=self.timeout_s, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise Silent(f"adb gives no answer: {type(problem).__name__}") from problem
        if done.returncode and not done.stdout:
            raise Silent(f"adb: {' '.join(done.stderr.split())[:160] or f'exit code {done.returncode}'}")
        return done.stdout
