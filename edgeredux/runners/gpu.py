"""Which NVIDIA GPU and driver this machine has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from edgeredux.readings import Missing

_BOARD = Path("/proc/device-tree/model")  # a Jetson's name; its GPU is part of the chip


class Gpu(NamedTuple):
    """A GPU by name, and the driver's version."""

    name: str
    driver: str


def look(board: Path = _BOARD) -> Gpu | Missing:
    """The first GPU, or why there is none."""
    place = shutil.which("nvidia-smi")
    if place is None:
        return Missing("this machine has no NVIDIA driver (nvidia-smi is not there)")
    asked = [place, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return Missing(f"nvidia-smi does not answer: {type(problem).__name__}")
    name, comma, driver = (done.stdout.strip().splitlines() or [""])[0].rpartition(",")
    if done.returncode or not comma:
        said = " ".join((done.stderr or done.stdout).split())[:120]
        return Missing(f"nvidia-smi finds no GPU: {said or f'exit code {done.returncode}'}")
    if board.is_file():
        name = f"{board.read_text(encoding='utf-8', errors='replace').strip(chr(0)).strip()} ({name.strip()})"
    return Gpu(name.strip(), driver.strip())
