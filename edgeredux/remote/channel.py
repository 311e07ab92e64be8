"""Commands on another device: what every way there offers, and how one command's bytes go both ways.

The way that there is: ssh (link.py). It starts a client program of this machine and judges its exit code.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple, Protocol

from edgeredux.errors import EnvironmentProblem, one_line

STALL_S = 90.0  # no byte either way for so long: given up and connected anew


class Dropped(EnvironmentProblem):
    """The connection was lost, or could not be made for a reason that may pass."""


class CommandFailed(EnvironmentProblem):
    """The command ran on the device and ended with another exit code than 0; `output` is what it printed."""

    def __init__(self, message: str, output: bytes = b"") -> None:
        super().__init__(message)
        self.output = output


class Channel(Protocol):
    """A way to a device. `host` is what messages call it, `python` the command that starts Python there."""

    @property
    def host(self) -> str: ...

    @property
    def python(self) -> str: ...

    def run(self, command: Sequence[str], given: Iterable[bytes] = (), *, patience_s: float = STALL_S) -> bytes:
        """What `command` printed there, `given` on its standard input.

        Raises Dropped when the connection is lost, CommandFailed on an exit code other than 0, EnvironmentProblem
        when the device refuses us, or we it.
        """


@dataclass(frozen=True)
class Place:
    """A device that files can be brought to: the way there, where the agent works and where relative paths begin
    (empty: where the device's shell begins), and the options its runtimes take.
    """

    channel: Channel
    folder: str
    below: str
    options: Mapping[str, str]


class Said(NamedTuple):
    """How a client program ended: exit code, what the command printed, what was said on stderr."""

    code: int
    output: bytes
    words: str


def converse(arguments: Sequence[str], given: Iterable[bytes], host: str, patience_s: float) -> Said:
    """Run a client program of this machine, `given` on its standard input.

    Raises Dropped when no byte moved for `patience_s`, and what reading `given` raised.
    """
    env = {**os.environ, "LC_ALL": "C"}
    child = subprocess.Popen(
        list(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    moved = _Moved()
    output, said = bytearray(), bytearray()
    threads = [
        threading.Thread(target=_send, args=(child.stdin, given, moved), daemon=True),
        threading.Thread(target=_receive, args=(child.stdout, output, moved), daemon=True),
        threading.Thread(target=_receive, args=(child.stderr, said, moved), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        while child.poll() is None:
            time.sleep(0.01)
            if time.monotonic() - moved.last > patience_s:
                raise Dropped(f"{host}: gave no sign for {patience_s:.0f} s")
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        for thread in threads:
            thread.join(5)
    if moved.problem is not None:
        raise moved.problem
    if any(thread.is_alive() for thread in threads[1:]):
        raise Dropped(f"{host}: the command ended and its answer did not")
    return Said(child.returncode, bytes(output), one_line(said.decode(errors="replace"), 400))


class _Moved:
    """When a byte last went either way, and what went wrong while reading what was to be sent."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.problem: Exception | None = None


def _send(pipe: IO[bytes], given: Iterable[bytes], moved: _Moved) -> None:
    try:
        for piece in given:
            pipe.write(piece)
            moved.last = time.monotonic()
    except BrokenPipeError:
        pass  # the other side ended first; its exit code says why
    except OSError as problem:
        moved.problem = problem
    with contextlib.suppress(BrokenPipeError):
        pipe.close()


def _receive(pipe: object, found: bytearray, moved: _Moved) -> None:
    for piece in iter(lambda: pipe.read1(1 << 16), b""):  # type: ignore[attr-defined]
        found += piece
        moved.last = time.monotonic()
    pipe.close()  # type: ignore[attr-defined]
