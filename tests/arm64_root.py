"""The arm64 root for tests: built once into the user's cache, where every later session finds it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgeredux.arm64 import debian, emulator, root


def built() -> Path:
    """The root; the test skips where Debian's tools for it are not here (tools/system_packages installs them)."""
    absent = [name for name, _ in debian.missing()] + [n for n in [emulator.QEMU] if shutil.which(n) is None]
    if absent:
        pytest.skip(f"no arm64 root: {', '.join(absent)} is not here (tools/system_packages installs it)")
    return root.install()
