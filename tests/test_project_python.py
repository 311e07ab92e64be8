"""Tools that the system's Python starts go on in the project's environment, or say that there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def start(folder: Path) -> subprocess.CompletedProcess[str]:
    """A tool in `folder`/tools, by a Python without the project's packages, where another `python` is on the PATH."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "project_python.py").write_text((TOOLS / "project_python.py").read_text(encoding="utf-8"))
    (tools / "tool").write_text(
        "import sys\nimport project_python\nproject_python.enter()\nprint(sys.prefix, sys.argv[1:])\n"
    )
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys._base_executable, "-I", "-c", f"import sys; sys.argv = ['{tools}/tool', 'a b']; sys.path.insert(0, '{tools}');"
         f"exec(open('{tools}/tool').read())"],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip


def test_goes_on_in_the_environment_or_says_how_to_make_it(tmp_path: Path) -> None:
    none = start(tmp_path)
    assert none.returncode == 1
    assert none.stderr == "no .venv here: run tools/environment first\n"
    (tmp_path / ".venv").symlink_to(sys.prefix)
    done = start(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / '.venv'} ['a b']\n"
