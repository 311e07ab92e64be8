"""Files on the device: what is there, put more, make them a whole folder, unpack, send one back, take all away.

Given to python3 as text (-c), so it imports nothing of ours. Every command but `get` answers with one line of JSON;
{"error": ..} with kind no_space, cut, differs, exists or failed. Names are relative to the folder and stay within it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import select
import shutil
import sys
import time
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

PART = ".part"
SILENCE_S = 30  # a sender that says nothing for so long has gone, though its connection may not know it yet
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Refused(Exception):
    """Ends the command; `kind` says to a program what `str` says to a person."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def inside(root: Path, name: str) -> Path:
    """The path of a name within the folder."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise Refused("failed", f"a name that leads out of the folder: {name!r}")
    return root.joinpath(*pure.parts)


def digest(path: Path) -> str:
    """Hex SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as handle:
        for piece in iter(lambda: handle.read(1 << 20), b""):
            found.update(piece)
    return found.hexdigest()


def state(root: Path) -> dict[str, Any]:
    """What `about` says and every file below the folder with size and hash."""
    files = {}
    if root.is_dir():
        for path in sorted(root.rglob("*")):
            if path.is_file():
                files[path.relative_to(root).as_posix()] = [path.stat().st_size, digest(path)]
    found = about(root)
    found["files"] = files
    return found


def about(root: Path) -> dict[str, Any]:
    """Whether the folder is there, whether a new one may not be put there, its disk's free bytes, and the machine."""
    there = root.absolute()
    while not there.exists():
        there = there.parent
    disk = os.statvfs(str(there))
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        libc = ""
    return {
        "exists": root.is_dir(),
        "taken": _taken(root),
        "path": str(root.absolute()),
        "free_bytes": disk.f_bavail * disk.f_frsize,
        "python": list(sys.version_info[:3]),
        "machine": os.uname().machine,
        "libc": libc,
    }


def _taken(path: Path) -> bool:
    return os.path.lexists(str(path)) and (path.is_symlink() or not path.is_dir() or any(path.iterdir()))


def put(root: Path) -> dict[str, Any]:
    """Files from stdin: a line of JSON (name, size, sha256, offset) and then the bytes from that offset on, each."""
    root.mkdir(parents=True, exist_ok=True)
    with root.with_name(root.name + ".lock").open("w") as lock:
        _lock(lock)
        count = 0
        for line in iter(_line, b""):
            try:
                header = json.loads(line.decode())
            except ValueError:
                raise Refused("cut", "the connection was cut within a header") from None
            _receive(root, header)
            count += 1
        return {"received": count}


def _receive(root: Path, header: dict[str, Any]) -> None:
    path = inside(root, header["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    with part.open("r+b" if header["offset"] else "wb") as handle:
        handle.truncate(header["offset"])
        handle.seek(header["offset"])
        left = header["size"] - header["offset"]
        while left:
            piece = _bytes(min(left, 1 << 20))
            if not piece:
                handle.flush()
                raise Refused("cut", "the connection was cut within {}".format(header["name"]))
            handle.write(piece)
            left -= len(piece)
        handle.flush()
        os.fsync(handle.fileno())
    if digest(part) != header["sha256"]:
        part.unlink()
        raise Refused("differs", "{} arrived with other bytes".format(header["name"]))
    part.replace(path)


def _lock(lock: Any) -> None:
    # A receiver whose connection is gone may still be there; it gives up after SILENCE_S.
    until = time.monotonic() + SILENCE_S + 15
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > until:
                raise Refused("failed", "another edgeredux is sending the same files") from None
            time.sleep(0.1)


def _bytes(most: int) -> bytes:
    ready, _, _ = select.select([0], [], [], SILENCE_S)
    if not ready:
        raise Refused("cut", f"nothing came for {SILENCE_S} s")
    return os.read(0, most)


def _line() -> bytes:
    found = bytearray()
    while not found.endswith(b"\n"):
        piece = _bytes(1)
        if not piece:
            break
        found += piece
    return bytes(found)


def commit(root: Path, final: Path) -> dict[str, Any]:
    """Rename the folder when it holds just the files that stdin's JSON {name: sha256} lists."""
    wanted = json.loads(sys.stdin.read())
    if _taken(final):
        raise Refused("exists", f"{final} is there already")
    have = {name: found[1] for name, found in state(root)["files"].items()}
    for name in sorted({*wanted, *have}):
        if wanted.get(name) != have.get(name):
            raise Refused("differs", f"{name} is not as it was sent")
    final.parent.mkdir(parents=True, exist_ok=True)
    for path in [*root.rglob("*"), root]:
        _sync(path)
    root.replace(final)
    _sync(final.parent)
    lock = root.with_name(root.name + ".lock")
    if lock.exists():
        lock.unlink()
    return {"committed": len(wanted)}


def _sync(path: Path) -> None:
    handle = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unpack(root: Path, final: Path) -> dict[str, Any]:
    """The contents of all zip files in the folder, as the folder `final`; whole or not there. The zip files go."""
    fresh = final.with_name(final.name + ".incoming")
    if fresh.is_dir():
        shutil.rmtree(str(fresh))
    for path in sorted(root.iterdir()):
        with zipfile.ZipFile(str(path)) as archive:
            for name in archive.namelist():
                inside(fresh, name)
            archive.extractall(str(fresh))
    fresh.replace(final)
    shutil.rmtree(str(root))
    return {"unpacked": str(final)}


def get(root: Path, name: str) -> None:
    """The file's bytes, to stdout."""
    with inside(root, name).open("rb") as handle:
        shutil.copyfileobj(handle, sys.stdout.buffer, 1 << 20)
    sys.stdout.buffer.flush()


def remove(root: Path) -> dict[str, Any]:
    """Take the folder away, and the one it was being received in."""
    for path in (root, root.with_name(root.name + ".incoming")):
        if path.is_dir():
            shutil.rmtree(str(path))
        lock = path.with_name(path.name + ".lock")
        if lock.exists():
            lock.unlink()
    return {"removed": str(root)}


def main(arguments: list[str]) -> int:
    command, root, more = arguments[0], Path(arguments[1]).expanduser(), arguments[2:]
    try:
        if command == "get":
            get(root, more[0])
            return 0
        if command == "commit":
            answer = commit(root, Path(more[0]).expanduser())
        elif command == "unpack":
            answer = unpack(root, Path(more[0]).expanduser())
        else:
            answer = {"state": state, "about": about, "put": put, "remove": remove}[command](root)
    except Refused as problem:
        answer = {"error": str(problem), "kind": problem.kind}
    except OSError as problem:
        kind = "no_space" if problem.errno in _FULL else "failed"
        answer = {"error": f"{problem.filename or root}: {problem.strerror}", "kind": kind}
    if command == "get":
        sys.stderr.write(answer["error"] + "\n")
        return 4
    sys.stdout.write(json.dumps(answer) + "\n")
    return 4 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
