"""A command and the processes it starts, with the memory that the kernel saw each of them hold at most."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_EVERY_S = 0.2  # the kernel keeps the high water, so only what happens just before an end is missed
_HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


@dataclass
class Watched:
    """What came of it."""

    returncode: int = 0
    seconds: float = 0.0
    output: list[str] = field(default_factory=list)  # lines of stdout and stderr
    high_water: dict[int, int] = field(default_factory=dict)  # bytes by process, VmHWM as the kernel keeps it
    at_once: int = 0  # bytes: the largest sum over all its processes at one moment that was looked at
    processor: dict[int, float] = field(default_factory=dict)  # seconds by process, user and system

    @property
    def peak(self) -> int:
        """Bytes: the sum of what each process held at most, whenever that was."""
        return sum(self.high_water.values())


def run(command: Sequence[str], environment: dict[str, str], kill_when: Callable[[], bool] | None = None) -> Watched:
    """Runs to the end, or until `kill_when` says so: then the whole process group gets SIGKILL."""
    found, started = Watched(), time.monotonic()
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )

    def listen() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            found.output.append(line.rstrip("\n"))
            print(f"  {line}", end="", flush=True)

    reader = threading.Thread(target=listen)
    reader.start()
    try:
        while child.poll() is None:
            _look(child.pid, found)
            if kill_when is not None and kill_when():
                _look(child.pid, found)
                os.killpg(child.pid, signal.SIGKILL)
                kill_when = None
            time.sleep(_EVERY_S)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        reader.join()
        assert child.stdout is not None
        child.stdout.close()
    found.returncode, found.seconds = child.returncode, time.monotonic() - started
    return found


def _look(pid: int, found: Watched) -> None:
    try:
        top = psutil.Process(pid)
        tree = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    resident = 0
    for process in tree:
        try:
            resident += process.memory_info().rss
            said = _HIGH_WATER.search(Path(f"/proc/{process.pid}/status").read_text(encoding="ascii"))
            times = process.cpu_times()
        except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
            continue
        if said is not None:  # a process that has ended holds nothing
            found.high_water[process.pid] = max(found.high_water.get(process.pid, 0), int(said[1]) * 1024)
            found.processor[process.pid] = times.user + times.system
    found.at_once = max(found.at_once, resident)
