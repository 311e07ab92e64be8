"""The folder a run works in, `DIR.partial`: finished steps stay, so a killed run goes on where it was.

A step is built in a folder of a temporary name and renamed when it is whole; its name carries the hash of everything
that went into it, so a step is reused exactly when it would come out the same. One process works in it at a time.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeredux.errors import BundleError, StorageError

_IDENTITY = "identity.json"


class Workspace:
    """`DIR.partial` for an output folder DIR, locked while open. Use as a context manager."""

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        """`identity` says what is being made; raises BundleError when another thing is being made there."""
        self.out = out
        self.root = out.with_name(out.name + ".partial")
        self.log = self.root / "log.txt"
        self._identity = identity
        self._lock: int | None = None

    def __enter__(self) -> Workspace:
        try:
            (self.root / "steps").mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as problem:
            raise storage_error(problem, self.root) from problem
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            os.close(self._lock)
            self._lock = None
            raise BundleError(f"{self.out}: another edgeredux process is working there; wait for it") from problem
        path = self.root / _IDENTITY
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                found = None  # the kill came while it was being written: nothing was built before it
            if found is not None and found != self._identity:
                changed = sorted(key for key in {*found, *self._identity} if found.get(key) != self._identity.get(key))
                self.__exit__()
                raise BundleError(
                    f"{self.root}: an unfinished run of something else is there (differs in {', '.join(changed)}); "
                    "finish it with its own command, delete that folder, or choose another --out"
                )
        write_atomic(path, json.dumps(self._identity, indent=1, sort_keys=True) + "\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def step(self, name: str, key: object, build: Callable[[Path], None], *, resumable: bool = False) -> Path:
        """The folder of a finished step, built now unless it is there already.

        `key` (JSON) holds everything the result depends on. `build(folder)` fills an empty folder; with
        `resumable`, the folder of an earlier killed attempt is kept and handed to it again.
        """
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
        final = self.root / "steps" / f"{name}-{digest}"
        if final.is_dir():
            return final
        working = self.root / "steps" / f".{name}-{digest}"
        try:
            if working.exists() and not resumable:
                shutil.rmtree(working)
            working.mkdir(exist_ok=True)
            build(working)
            sync_folder(working)
            working.rename(final)
            sync_path(final.parent)
        except OSError as problem:
            raise storage_error(problem, working) from problem
        return final

    def remove(self) -> None:
        """Delete the workspace; called when the bundle stands."""
        shutil.rmtree(self.root)


def storage_error(problem: OSError, place: Path) -> Exception:
    """An OSError as one of ours when it is the disk's or the folder's fault, else itself."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError(
            f"{place}: no space left on the disk; free some and type the same command again: finished steps are kept"
        )
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return StorageError(f"{place}: cannot be written: {problem.strerror}; choose another --out")
    return problem


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or as it was before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_path(path: Path) -> None:
    """fsync one file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """fsync every file below a folder, and the folder."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            sync_path(path)
    sync_path(folder)
