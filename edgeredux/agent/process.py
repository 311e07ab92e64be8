"""The work of a job as a process that outlives the connection that started it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OUT = "out"
RESULT = "result.json"
_PID = "pid.json"
_DEAD = ("Z", "X")  # states of a process that is only not yet forgotten
# What `python -c` runs to start one of the agent's commands: argv is ROOT COMMAND ..., ROOT holds package edgeredux.
BOOT = (
    "import sys; sys.path[:] = [sys.argv.pop(1), *filter(None, sys.path)]; "
    "from edgeredux.agent.__main__ import main; sys.exit(main(sys.argv[1:]))"
)


def command(root: Path, *arguments: str) -> list[str]:
    """The arguments that start the agent again, from the code in `root`."""
    return [sys.executable, "-B", "-c", BOOT, str(root), *arguments]


def write_atomic(path: Path, text: str) -> None:
    """The file is there whole or as it was before."""
    fresh = path.with_name("." + path.name + ".tmp")
    with fresh.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    fresh.replace(path)


def start(job: Path) -> dict[str, Any]:
    """Start the job's supervisor in a session of its own, unless it runs or has run; the state afterwards."""
    (job / OUT).mkdir(exist_ok=True)
    said = state(job)
    if said["state"] in ("running", "done"):
        return said
    with (job / OUT / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            command(job, "supervise", str(job)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=str(job),
            start_new_session=True,
        )
    identity = {"pid": child.pid, "born": _born(child.pid), "boot": _boot()}
    write_atomic(job / OUT / _PID, json.dumps(identity))
    child.returncode = 0  # it is meant to stay when this process ends
    return {"state": "running"}


def state(job: Path) -> dict[str, Any]:
    """done, running, killed, rebooted (the device did, meanwhile) or absent (never started)."""
    if (job / OUT / RESULT).is_file():
        return {"state": "done"}
    if not (job / OUT / _PID).is_file():
        return {"state": "absent"}
    identity = json.loads((job / OUT / _PID).read_text(encoding="utf-8"))
    if identity["boot"] != _boot():
        return {"state": "rebooted"}
    if _alive(identity):
        return {"state": "running"}
    # It may have ended with its result between the two looks.
    return {"state": "done" if (job / OUT / RESULT).is_file() else "killed"}


def wait(job: Path, seconds: float) -> dict[str, Any]:
    """The state as soon as it is not `running`, or after so many seconds of the monotonic clock."""
    until = time.monotonic() + seconds
    while True:
        said = state(job)
        if said["state"] != "running" or time.monotonic() >= until:
            return said
        time.sleep(0.05)


def stop(job: Path) -> dict[str, Any]:
    """Kill what still runs of the job, the model's process too where the supervisor is gone; the state afterwards."""
    path = job / OUT / _PID
    if path.is_file():
        identity = json.loads(path.read_text(encoding="utf-8"))
        until = time.monotonic() + 5
        while _runs(identity) and time.monotonic() < until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(identity["pid"], signal.SIGKILL)
            time.sleep(0.02)
    return state(job)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When the process began, in ticks since boot: tells it from a later one of the same number."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in _DEAD else ""


def _stat(pid: int) -> list[str]:
    """State, parent, group, ..: what follows a process's name in its stat; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _alive(identity: dict[str, Any]) -> bool:
    return bool(identity["born"]) and _born(identity["pid"]) == identity["born"]


def _runs(identity: dict[str, Any]) -> bool:
    """Whether a process of the supervisor's group is there; the group's number stays taken as long as one is."""
    leader = _stat(identity["pid"])
    if identity["boot"] != _boot() or (leader and leader[19] != identity["born"]):
        return False
    found = (_stat(int(place.name)) for place in Path("/proc").glob("[0-9]*"))
    return any(fields and fields[2] == str(identity["pid"]) and fields[0] not in _DEAD for fields in found)
