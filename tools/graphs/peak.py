"""The most memory that a command and all its children held at one time."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

_EVERY_S = 0.05


@dataclass(frozen=True)
class Ran:
    """`peak_bytes`: resident pages of all processes together, mapped files included."""

    peak_bytes: int
    seconds: float
    returncode: int
    said: str


def run(command: Sequence[str]) -> Ran:
    """Run the command, and look at its memory twenty times a second."""
    started, peak = time.monotonic(), 0
    with subprocess.Popen(
        list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    ) as child:
        root = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, _resident(root))
            time.sleep(_EVERY_S)
        assert child.stdout is not None
        said = child.stdout.read()
    return Ran(peak, time.monotonic() - started, child.returncode, said)


def _resident(root: psutil.Process) -> int:
    total = 0
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # it ended between the two looks
            continue
    return total
