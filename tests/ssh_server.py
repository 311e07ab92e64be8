"""A real OpenSSH server on a free loopback port with keys of its own, for tests that need another machine."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SSHD = Path("/usr/sbin/sshd")

# The connection goes after three million bytes of the first file that is sent: Server.device_python.
CUT_IN_PUT = (
    "if 'put' in words and first('put'):\n"
    "    child = subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE)\n"
    "    left = 3_000_000\n"
    "    while left:\n"
    "        piece = os.read(0, min(left, 65536))\n"
    "        child.stdin.write(piece)\n"
    "        left -= len(piece)\n"
    "    child.stdin.close()\n"
    "    child.wait()\n"
    "    cut()\n"
    "    sys.exit(1)\n"
)


@dataclass
class Server:
    """Where it is, and the options of the ssh runner that reach it."""

    folder: Path
    port: int

    def options(self, **more: Any) -> dict[str, Any]:
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "key": str(self.folder / "client"),
            "known_hosts": str(self.folder / "known_hosts"),
            "python": sys.executable,
            "folder": str(self.folder / "device"),
            **more,
        }

    def device_python(self, body: str) -> str:
        """A `python3` of the device that first does `body`: words is its command line, again tells of a second time.

        The agent's commands are words like "put" and "wait". `real` starts the interpreter in this one's place.
        """
        path = self.folder / "bin" / "python3"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f"#!{sys.executable}\n"
            "import os, signal, subprocess, sys\n"
            "from pathlib import Path\n"
            "words = sys.argv[1:]\n"
            "def first(name):\n"
            f"    mark = Path({str(self.folder)!r}, 'mark-' + name)\n"
            "    there = mark.exists()\n"
            "    mark.touch()\n"
            "    return not there\n"
            "def cut():\n"
            "    os.kill(os.getppid(), signal.SIGKILL)\n"
            f"def real():\n    os.execv({sys.executable!r}, [{sys.executable!r}, *words])\n"
            f"{body}\nreal()\n",
            encoding="utf-8",
        )
        path.chmod(0o755)
        return str(path)


def keygen(path: Path) -> str:
    """Make a key; the public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_name(path.name + ".pub").read_text(encoding="ascii")


def serve(folder: Path) -> Iterator[Server]:
    if not SSHD.is_file():
        pytest.skip("no sshd on this machine (tools/system_packages installs it)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    host = keygen(folder / "host")
    (folder / "authorized").write_text(keygen(folder / "client"), encoding="ascii")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}", encoding="ascii")
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        "MaxStartups 100\nLogLevel ERROR\n",
        encoding="ascii",
    )
    with (folder / "sshd.log").open("wb") as log:
        child = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "config")], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert child.poll() is None, (folder / "sshd.log").read_text()
            assert time.monotonic() < until, "sshd gives no sign"
            time.sleep(0.02)
        yield Server(folder, port)
    finally:
        child.terminate()
        child.wait()
