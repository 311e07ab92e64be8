"""Files to a device, resumed where a lost connection left them, and back; a folder there is whole or not there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeredux.agent import store
from edgeredux.artifact import sha256_file
from edgeredux.errors import ArtifactError, EnvironmentProblem, StorageError, one_line
from edgeredux.remote.channel import Channel, CommandFailed, Dropped

_SOURCE = Path(store.__file__).read_text(encoding="utf-8")
_PIECE = 1 << 18
TRIES = 8  # connections lost in a row, with nothing achieved between them, before giving up


class Damaged(Dropped):
    """Bytes arrived that were not sent."""


class GaveUp(EnvironmentProblem):
    """The connection was lost too often; the same command goes on where it was."""


class Patience:
    """Counts lost connections; sleeps before the next try, longer each time, and gives up after TRIES in a row."""

    def __init__(self) -> None:
        self.lost = 0
        self.total = 0

    def again(self, problem: Dropped) -> None:
        """Sleep, or raise GaveUp when it was enough."""
        self.lost += 1
        self.total += 1
        if self.lost >= TRIES:
            raise GaveUp(f"{problem} ({TRIES} times in a row); the same command goes on from there") from problem
        time.sleep(min(0.25 * 2**self.lost, 15.0))


def tell(link: Channel, command: str, root: str, *more: str, given: Any = ()) -> dict[str, Any]:
    """The answer of a command of `edgeredux.agent.store` on the device. Raises the error it names."""
    try:
        printed = link.run([link.python, "-B", "-c", _SOURCE, command, root, *more], given)
    except CommandFailed as problem:
        printed = problem.output
        if not printed.strip().startswith(b"{"):
            raise
    try:
        answer = dict(json.loads(printed))
    except (ValueError, TypeError, RecursionError) as problem:
        raise EnvironmentProblem(
            f"{link.host}: {link.python} gave an answer that is none: {printed[:80]!r}"
        ) from problem
    if "error" in answer:
        kind, said = answer.get("kind"), one_line(f"{link.host}: {answer['error']}")
        if kind == "no_space":
            raise StorageError(f"{said} (no space left on the device; free some there)")
        if kind in ("cut", "differs"):
            raise (Dropped if kind == "cut" else Damaged)(said)
        raise StorageError(said)
    return answer


def look(link: Channel, root: str, patience: Patience, *, names: bool = False) -> dict[str, Any]:
    """`state` of a folder there, asked for again where the connection was lost; `names`: without its files.

    Raises EnvironmentProblem at once when no connection was ever made.
    """
    while True:
        try:
            found = tell(link, "about" if names else "state", root)
            patience.lost = 0
            return found
        except Dropped as problem:
            if patience.total == 0 and "lost or not made" in str(problem):
                raise EnvironmentProblem(f"{problem}; is the device on, and the address right?") from problem
            patience.again(problem)


def hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 by name there."""
    return {name: sha256_file(path) for name, path in files.items()}


def add(link: Channel, root: str, files: Mapping[str, Path], patience: Patience) -> int:
    """Bring small files into a folder that is there; the bytes sent."""
    sent = _Count()
    while True:
        try:
            tell(link, "put", root, given=_stream([(n, p, 0) for n, p in files.items()], hashes(files), sent))
            return sent.bytes
        except Dropped as problem:
            patience.again(problem)


def commit(link: Channel, root: str, final: str, files: Mapping[str, Path], patience: Patience) -> None:
    """Rename the folder `root` there to `final`, once it holds just these files."""
    wanted = hashes(files)
    while True:
        try:
            tell(link, "commit", root, final, given=[json.dumps(wanted).encode()])
            return
        except Dropped as problem:
            patience.again(problem)
            if _is_whole(link, final, wanted):  # the rename was made, only its answer was lost
                return


def push(link: Channel, root: str, files: Mapping[str, Path], patience: Patience) -> int:
    """Bring the files (name there -> path here) into the folder `root` there, which is renamed into place when whole.

    Raises StorageError where the device's disk is full (what was sent is taken away again). Answers with the bytes
    sent, which are fewer than the files' where an earlier try left some.
    """
    wanted = hashes(files)
    incoming, sent = root + ".incoming", _Count()
    while True:
        before = sent.bytes
        try:
            have = tell(link, "state", incoming)
            left = _left(files, wanted, have["files"])
            need = sum(path.stat().st_size - offset for _, path, offset in left)
            if need > have["free_bytes"]:
                raise StorageError(
                    f"{link.host}: {need / 1e6:.1f} MB are to be sent, {have['free_bytes'] / 1e6:.1f} MB are free on "
                    f"the disk of {root} (no space left on the device)"
                )
            if left:
                tell(link, "put", incoming, given=_stream(left, wanted, sent))
            tell(link, "commit", incoming, root, given=[json.dumps(wanted).encode()])
            return sent.bytes
        except Dropped as problem:
            if sent.bytes > before and not isinstance(problem, Damaged):
                patience.lost = 0
            patience.again(problem)
            if _is_whole(link, root, wanted):  # the rename was made, only its answer was lost
                return sent.bytes
        except StorageError:
            tell(link, "remove", incoming)
            raise


class _Count:
    def __init__(self) -> None:
        self.bytes = 0


def _is_whole(link: Channel, root: str, hashes: Mapping[str, str]) -> bool:
    try:
        have = tell(link, "state", root)
    except Dropped:
        return False
    return bool(hashes) and {name: item[1] for name, item in have["files"].items()} == dict(hashes)


def _left(
    files: Mapping[str, Path], hashes: Mapping[str, str], have: Mapping[str, Sequence[Any]]
) -> list[tuple[str, Path, int]]:
    left = []
    for name, path in files.items():
        if name in have and have[name][1] == hashes[name]:
            continue
        offset = 0
        if name + store.PART in have:
            size, digest = have[name + store.PART]
            offset = size if size <= path.stat().st_size and _prefix(path, size) == digest else 0
        left.append((name, path, offset))
    return left


def _prefix(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while size and (piece := handle.read(min(size, 1 << 20))):
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest()


def _stream(left: Sequence[tuple[str, Path, int]], hashes: Mapping[str, str], sent: _Count) -> Iterator[bytes]:
    for name, path, offset in left:
        header = {"name": name, "size": path.stat().st_size, "sha256": hashes[name], "offset": offset}
        yield json.dumps(header).encode() + b"\n"
        with path.open("rb") as handle:
            handle.seek(offset)
            while piece := handle.read(_PIECE):
                yield piece
                sent.bytes += len(piece)


def fetch(link: Channel, root: str, name: str, to: Path, sha256: str | None, patience: Patience) -> Path:
    """One file from there, asked for again where the connection was lost. Raises ArtifactError on another hash."""
    while True:
        try:
            to.write_bytes(link.run([link.python, "-B", "-c", _SOURCE, "get", root, name]))
            break
        except Dropped as problem:
            patience.again(problem)
    if sha256 is not None and sha256_file(to) != sha256:
        raise ArtifactError(f"{link.host}: {name} came back with other bytes than were written")
    return to
