"""Commands on another device through OpenSSH's own client.

Arguments go as lists on this side; on the other side a shell reads one line, in which every argument is quoted. The
host's key must be known (StrictHostKeyChecking=yes), nothing is asked (BatchMode), and the user's ssh_config applies.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgeredux.errors import EnvironmentProblem, TargetError, one_line

HOST_VARIABLE = "EDGEREDUX_SSH_HOST"
_STALL_S = 90.0  # no byte either way for so long: given up and connected anew
_NAME = re.compile(r"[A-Za-z0-9_.:\[\]%][A-Za-z0-9_.:\[\]%-]*")


class Dropped(EnvironmentProblem):
    """The connection was lost, or could not be made for a reason that may pass."""


class CommandFailed(EnvironmentProblem):
    """The command ran on the device and ended with another exit code than 0; `output` is what it printed."""

    def __init__(self, message: str, output: bytes = b"") -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Link:
    """How a device is reached. Empty strings and 0 leave the choice to ssh_config."""

    host: str
    port: int = 0
    user: str = ""
    key: str = ""
    known_hosts: str = ""
    python: str = "python3"

    def check(self) -> None:
        """Raise TargetError on a host or user that is no name, EnvironmentProblem without an ssh client."""
        for what, name in (("host", self.host), ("user", self.user or "x")):
            if not _NAME.fullmatch(name):
                raise TargetError(f"ssh {what} {name!r}: letters, digits, '.', ':', '_', '-' only, no '-' in front")
        if shutil.which("ssh") is None:
            raise EnvironmentProblem("no ssh client here; install it with: apt-get install openssh-client")
        if self.key and not Path(self.key).expanduser().is_file():
            raise TargetError(f"ssh key {self.key}: no such file")

    def arguments(self, command: Sequence[str]) -> list[str]:
        """The ssh command line that runs `command` there."""
        options = [
            *("BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=15", "LogLevel=ERROR"),
            *("ServerAliveInterval=5", "ServerAliveCountMax=3", "ClearAllForwardings=yes", "PermitLocalCommand=no"),
        ]
        if self.known_hosts:
            options += [f"UserKnownHostsFile={_option_path(self.known_hosts)}", "GlobalKnownHostsFile=/dev/null"]
        if self.key:
            options += ["IdentitiesOnly=yes", f"IdentityFile={_option_path(self.key)}"]
        found = ["ssh", "-T"]
        for option in options:
            found += ["-o", option]
        if self.port:
            found += ["-p", str(self.port)]
        if self.user:
            found += ["-l", self.user]
        return [*found, "--", self.host, " ".join(shlex.quote(word) for word in command)]

    def run(self, command: Sequence[str], given: Iterable[bytes] = (), *, patience_s: float = _STALL_S) -> bytes:
        """What `command` printed there, `given` on its standard input.

        Raises Dropped when the connection is lost, CommandFailed on an exit code other than 0, EnvironmentProblem
        when the device refuses us, or we it.
        """
        env = {**os.environ, "LC_ALL": "C"}
        child = subprocess.Popen(
            self.arguments(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
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
                    raise Dropped(f"{self.host}: gave no sign for {patience_s:.0f} s")
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
            for thread in threads:
                thread.join(5)
        if moved.problem is not None:
            raise moved.problem
        if any(thread.is_alive() for thread in threads[1:]):
            raise Dropped(f"{self.host}: the command ended and its answer did not")
        if child.returncode == 0:
            return bytes(output)
        raise self._problem(child.returncode, one_line(said.decode(errors="replace"), 400), bytes(output))

    def _problem(self, code: int, said: str, output: bytes) -> EnvironmentProblem:
        if code in (126, 127):
            return EnvironmentProblem(
                f"{self.host}: no {self.python} there (exit code {code}: {said}); install Python 3.8 or newer on it, "
                "or name it with the target's option python"
            )
        if code != 255:
            return CommandFailed(f"{self.host}: the command ended with exit code {code}: {said or 'no word'}", output)
        place = f"[{self.host}]:{self.port}" if self.port not in (0, 22) else self.host
        if "IDENTIFICATION HAS CHANGED" in said:
            return EnvironmentProblem(
                f"{self.host}: its host key is another than the known one: another device, or somebody between? If "
                f"it was set up anew: ssh-keygen -R '{place}', then connect once by hand and compare the fingerprint"
            )
        if "Host key verification failed" in said or "host key is known" in said:
            return EnvironmentProblem(
                f"{self.host}: its host key is not known; connect once by hand and compare the fingerprint: ssh "
                f"{f'-p {self.port} ' if self.port else ''}{self.user + '@' if self.user else ''}{self.host}"
            )
        if "Permission denied" in said:
            return EnvironmentProblem(f"{self.host}: it does not let us in ({said}); give the target's user and key")
        if "Could not resolve" in said:
            return EnvironmentProblem(f"{self.host}: no such host ({said}); name another with {HOST_VARIABLE}")
        return Dropped(f"{self.host}: the connection was lost or not made: {said or 'ssh ended with exit code 255'}")


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


def _option_path(path: str) -> str:
    """A path as a value in ssh's option syntax: quoted, per cent signs doubled."""
    found = str(Path(path).expanduser().absolute())
    if '"' in found or "\n" in found:
        raise TargetError(f"{found!r}: ssh takes no quotation marks or line ends in such a path")
    return '"' + found.replace("%", "%%") + '"'
