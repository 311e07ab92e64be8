"""Tools run in the environment that tools/environment makes, also where the system's Python starts them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def enter() -> None:
    """Start the same tool again with .venv's Python unless this Python has what edgeredux needs; children see both.

    Ends with one line where the environment was not made yet.
    """
    places = [str(ROOT), str(ROOT / "tools")]
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])])
    if all(importlib.util.find_spec(name) is not None for name in ("torch", "onnxruntime", "psutil")):
        return
    python = ROOT / ".venv" / "bin" / "python"
    if not python.is_file():
        sys.exit("no .venv here: run tools/environment first")
    # By its path: a Python that is told another name looks for its packages where that name leads.
    os.execv(python, [str(python), *sys.argv])
