"""Commands on another device through OpenSSH's own client.

Arguments go as lists on this side; on the other side a shell reads one line, in which every argument is quoted. The
host's key must be known (StrictHostKeyChecking=yes), nothing is asked (BatchMode), and the user's ssh_config applies.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeredux.errors import EnvironmentProblem, TargetError
from edgeredux.remote.channel import STALL_S, CommandFailed, Dropped, converse

HOST_VARIABLE = "EDGEREDUX_SSH_HOST"
_NAME = re.compile(r"[A-Za-z0-9_.:\[\]%][A-Za-z0-9_.:\[\]%-]*")


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

    def run(self, command: Sequence[str], given: Iterable[bytes] = (), *, patience_s: float = STALL_S) -> bytes:
        """As `Channel.run`."""
        said = converse(self.arguments(command), given, self.host, patience_s)
        if said.code == 0:
            return said.output
        raise self._problem(said.code, said.words, said.output)

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


def _option_path(path: str) -> str:
    """A path as a value in ssh's option syntax: quoted, per cent signs doubled."""
    found = str(Path(path).expanduser().absolute())
    if '"' in found or "\n" in found:
        raise TargetError(f"{found!r}: ssh takes no quotation marks or line ends in such a path")
    return '"' + found.replace("%", "%%") + '"'
