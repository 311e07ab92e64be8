"""The work of a command in a child process, with its progress on this terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux.errors import InternalError

if TYPE_CHECKING:
    from edgeredux.seams import Progress


def run(function: str, arguments: dict[str, Any], as_json: bool, verbose: bool) -> Any:
    """Run the work in a child; its noise goes to a temporary log that stays only when it is of use."""
    import tempfile

    from edgeredux import isolated

    handle, name = tempfile.mkstemp(prefix="edgeredux-", suffix=".log")
    os.close(handle)
    log = Path(name)
    keep = verbose
    try:
        with Drawing(quiet=as_json) as draw:
            return isolated.call(function, arguments, log=log, what="edgeredux", progress=draw, timeout_s=7 * 86400.0)
    except InternalError as problem:
        keep = True
        raise InternalError(f"{problem} (log: {log})") from problem
    finally:
        if verbose:
            print(f"log: {log}", file=sys.stderr)
        if not keep:
            log.unlink(missing_ok=True)


class Drawing:
    """A bar with time left on a terminal's stderr; elsewhere a line per stage on stdout; nothing with --json.

    Where nobody watches, stderr is for the verdict's misses and for the one line of an error.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._said = ""

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        return self.draw

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def draw(self, text: str, done: float, total: float) -> None:
        """One message of the work."""
        if self._quiet:
            return
        stage = " ".join(text.split(":")[:2]) if self._bar is None else text.split(":")[0]
        if self._bar is None:
            if stage.split(" loss")[0] != self._said:
                self._said = stage.split(" loss")[0]
                print(text, flush=True)
            return
        if stage != self._said:
            self._said = stage
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(text, total=total)
        self._bar.update(self._task, description=text[:90].replace("[", "("), completed=done, total=total)
