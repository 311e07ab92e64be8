"""Python of the arm64 root under qemu-user, as a process on one kind of core."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgeredux.errors import one_line

QEMU, PACKAGE = "qemu-aarch64-static", "qemu-user-static"
_PYTHON = "usr/bin/python3.11"
_LONGEST_S = 3600.0


class Ended(NamedTuple):
    """Exit code (negative: the signal's number), what was printed, what was said on stderr in one line."""

    code: int
    output: bytes
    words: str

    @property
    def signal(self) -> str | None:
        """The signal that ended it. qemu passes a guest's own on, or says it as a shell does, 128 and its number."""
        number = -self.code if self.code < 0 else self.code - 128
        return signal.Signals(number).name if number in {s.value for s in signal.Signals} else None


def command(root: Path, core: str, arguments: Sequence[str], called: str = "") -> list[str]:
    """The command line; `called` is what the Python there takes for its own path, and starts again."""
    named = ["-0", called] if called else []
    return [QEMU, "-cpu", core, *named, "-L", str(root / "cores" / core), str(root / _PYTHON), *arguments]


def run(root: Path, core: str, arguments: Sequence[str]) -> Ended:
    """Run Python there. The environment is the guest's own: nothing of this machine's Python reaches it."""
    done = subprocess.run(
        command(root, core, ["-I", "-B", *arguments]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        timeout=_LONGEST_S,
        check=False,
    )
    return Ended(done.returncode, done.stdout, one_line(done.stderr.decode(errors="replace")[-2000:], 400))
