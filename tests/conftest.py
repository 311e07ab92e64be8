"""What every test may use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
Cli = Callable[..., "subprocess.CompletedProcess[str]"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Starts the command line in a process of its own, in an empty folder."""

    def start(*arguments: object, timeout: float = 600, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        places = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.run(
            [sys.executable, "-m", "edgeredux", *map(str, arguments)],
            cwd=cwd or tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        )

    return start


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets and models beside the checkout; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder of shared test data is not beside this checkout")
    return SHARED
