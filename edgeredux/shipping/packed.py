"""A packed file: a folder or a model in one file, weights in the code that is shortest for their zeros.

    magic, length of the header (4 bytes), header (JSON), frames one after the other

The header says of each file its path, size, SHA-256 and parts; equal files are stored once. A packed file comes from
elsewhere, so nothing it says is believed: sizes are bounded before anything is allocated, paths stay inside of the
folder, and a file is there only when its hash is right.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import zstandard

from edgeredux.artifact import sha256_file
from edgeredux.errors import BundleError, StorageError
from edgeredux.shipping import codes
from edgeredux.shipping.regions import PIECE, regions
from edgeredux.workspace import storage_error

SUFFIX = ".erpack"
LIMIT_BYTES = 32 << 30  # of all files expanded, unless the caller allows more
_MAGIC = b"edgeredux pack 1\n"
_REPEAT = "repeat"  # a part that is the same as earlier bytes of its file, from a given place on
_LENGTH = struct.Struct("<I")
_MOST_HEADER = 64 << 20
_MOST_FILES = 10_000
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_packed(path: Path) -> bool:
    """Whether this is a file that `pack` wrote, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(len(_MAGIC)) == _MAGIC


def pack(source: Path, out: Path) -> dict[str, Any]:
    """Write `source`, a model file (with the external weights beside it) or a folder, to the new file `out`.

    The answer: {"files", "plain_bytes" (all files as they are), "zstd_bytes" (each different one compressed as it is),
    "packed_bytes", "codes" (bytes before coding, by code)}. The same source gives the same bytes. Raises ArtifactError
    on a model that cannot be read, BundleError, StorageError.
    """
    members = _members(source)
    if out.exists():
        raise StorageError(f"{out}: is there already; nothing was overwritten, name another file")
    if not out.absolute().parent.is_dir():
        raise StorageError(f"{out.parent}: there is no such folder")
    files: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    told: dict[str, Any] = {"files": len(members), "plain_bytes": 0, "zstd_bytes": 0, "packed_bytes": 0, "codes": {}}
    try:
        with (
            tempfile.TemporaryFile(dir=out.absolute().parent) as frames,
            _fresh(out) as made,
        ):
            for name, path in members.items():
                digest, size = sha256_file(path), path.stat().st_size
                entry: dict[str, Any] = {"path": name, "size_bytes": size, "sha256": digest}
                told["plain_bytes"] += size
                if digest in seen:
                    entry["same_as"] = seen[digest]
                else:
                    entry["parts"] = list(_parts(path, frames, told))
                    seen[digest] = len(files)
                files.append(entry)
            header = json.dumps({"files": files}, separators=(",", ":")).encode()
            if len(header) > _MOST_HEADER:
                raise BundleError(f"{source}: its list of parts exceeds {_MOST_HEADER >> 20} MB")
            made.write(_MAGIC + _LENGTH.pack(len(header)) + header)
            frames.seek(0)
            shutil.copyfileobj(frames, made, 1 << 20)
    except OSError as problem:
        raise storage_error(problem, out) from problem
    told["packed_bytes"] = out.stat().st_size
    return told


def unpack(packed: Path, to: Path, limit_bytes: int = LIMIT_BYTES) -> dict[str, Any]:
    """Expand into the new folder `to`, bit for bit; {"files", "bytes"}. `to` is all there or not there.

    Raises BundleError on a file that is damaged, hostile, or expands to more than `limit_bytes`; StorageError.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise BundleError(f"{to}: is not empty; nothing is overwritten, choose another folder")
    with _open(packed) as handle:
        files, start = _header(packed, handle)
        total = sum(entry["size_bytes"] for entry in files)
        if total > limit_bytes:
            raise BundleError(f"{packed}: it would expand to {total} bytes, allowed are {limit_bytes}")
        stored = sum(sum(part[4]) for entry in files for part in entry.get("parts", ()))
        if start + stored != packed.stat().st_size:
            raise BundleError(f"{packed}: it is cut off, or holds more than it lists")
        try:
            to.absolute().parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(to.absolute().parent).free
            if total > free:
                raise StorageError(f"{to}: {total >> 20} MB are needed there and {free >> 20} MB are free")
            with tempfile.TemporaryDirectory(dir=to.absolute().parent, prefix=".edgeredux-") as name:
                fresh = Path(name, "files")
                fresh.mkdir()
                for entry in files:
                    _expand(packed, handle, entry, files, fresh)
                if to.is_dir():
                    to.rmdir()
                fresh.rename(to)
        except OSError as problem:
            raise storage_error(problem, to) from problem
    return {"files": len(files), "bytes": total}


def _members(source: Path) -> dict[str, Path]:
    if source.is_file():
        beside = source.with_name(source.name + ".data")
        return {path.name: path for path in (source, beside) if path.is_file()}
    if not source.is_dir():
        raise BundleError(f"{source}: no such file or folder")
    found = {p.relative_to(source).as_posix(): p for p in sorted(source.rglob("*")) if p.is_file()}
    if not found:
        raise BundleError(f"{source}: an empty folder")
    for name, path in found.items():
        if path.is_symlink():
            raise BundleError(f"{source}: {name} is a link; only files are packed")
        _safe(source, name)
    return found


def _parts(path: Path, frames: IO[bytes], told: dict[str, Any]) -> Iterator[list[Any]]:
    """The parts of a file, their frames written; what they come to goes to `told`."""
    with _mapped(path) as data:
        told["zstd_bytes"] += _compressed(data)
        seen: dict[bytes, int] = {}
        for start, length, item in regions(path, data):
            digest = hashlib.sha256(data[start : start + length]).digest()
            if digest in seen:  # a tied weight stored twice, for instance
                told["codes"][_REPEAT] = told["codes"].get(_REPEAT, 0) + length
                yield [_REPEAT, length, 1, 0, [], [seen[digest]]]
                continue
            seen[digest] = start
            coded = codes.encode(data[start : start + length], item)
            for frame in coded.frames:
                frames.write(frame)
            told["codes"][coded.code] = told["codes"].get(coded.code, 0) + length
            lengths = [len(frame) for frame in coded.frames]
            yield [coded.code, coded.size, coded.item, coded.fill, lengths, list(coded.lengths)]


def _compressed(data: Any) -> int:
    """Bytes of the whole file as one zstd stream, for comparison."""
    pressing = zstandard.ZstdCompressor(level=codes.LEVEL).compressobj(size=len(data))
    size = sum(len(pressing.compress(data[place : place + PIECE])) for place in range(0, len(data), PIECE))
    return size + len(pressing.flush())


def _expand(packed: Path, handle: IO[bytes], entry: Mapping[str, Any], files: list[Any], fresh: Path) -> None:
    path = fresh.joinpath(*PurePosixPath(entry["path"]).parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    if "same_as" in entry:
        shutil.copyfile(fresh.joinpath(*PurePosixPath(files[entry["same_as"]]["path"]).parts), path)
        return
    digest = hashlib.sha256()
    with path.open("x+b") as out:
        for code, size, item, fill, frames, lengths in entry["parts"]:
            if code == _REPEAT:
                out.seek(lengths[0])
                data = out.read(size)
                out.seek(0, os.SEEK_END)
            else:
                read = tuple(handle.read(length) for length in frames)
                data = codes.decode(codes.Coded(code, size, item, fill, read, tuple(lengths)))
            digest.update(data)
            out.write(data)
    if digest.hexdigest() != entry["sha256"]:
        raise BundleError(f"{packed}: {entry['path']} has other bytes than were packed (its SHA-256 differs)")


def _header(packed: Path, handle: IO[bytes]) -> tuple[list[dict[str, Any]], int]:
    """The checked list of files, and where the frames begin."""
    if handle.read(len(_MAGIC)) != _MAGIC:
        raise BundleError(f"{packed}: no packed file; edgeredux pack writes one")
    said = handle.read(_LENGTH.size)
    length = _LENGTH.unpack(said)[0] if len(said) == _LENGTH.size else _MOST_HEADER + 1
    if length > _MOST_HEADER:
        raise BundleError(f"{packed}: damaged: a header of {length} bytes")
    try:
        files = json.loads(handle.read(length))["files"]
        if not isinstance(files, list) or not 0 < len(files) <= _MOST_FILES:
            raise ValueError("files")
        for index, entry in enumerate(files):
            _check(packed, entry, files[:index])
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise BundleError(f"{packed}: damaged, or of another version of edgeredux ({problem})") from problem
    names = [entry["path"] for entry in files]
    if len({name.lower() for name in names}) != len(names):
        raise BundleError(f"{packed}: it lists a file twice")
    return files, len(_MAGIC) + _LENGTH.size + length


def _check(packed: Path, entry: dict[str, Any], before: list[dict[str, Any]]) -> None:
    """Raise where an entry of the header is no honest one."""
    _safe(packed, entry["path"])
    size = entry["size_bytes"]
    if not _count(size) or not _DIGEST.fullmatch(entry["sha256"]):
        raise ValueError("size or hash")
    if "same_as" in entry:
        place = entry["same_as"]
        if not _count(place) or place >= len(before) or before[place]["sha256"] != entry["sha256"]:
            raise ValueError("same_as")
        if before[place]["size_bytes"] != size or "parts" in entry:
            raise ValueError("same_as")
        return
    place = 0
    for code, length, item, fill, frames, lengths in entry["parts"]:
        numbers = (length, item, fill, *frames, *lengths)
        if not isinstance(code, str) or not all(_count(number) for number in numbers) or length > PIECE:
            raise ValueError("a part")
        if code == _REPEAT and (frames or len(lengths) != 1 or lengths[0] + length > place):
            raise ValueError("a repeated part")
        place += length
    if place != size:
        raise ValueError("the parts of a file are not its size")


def _count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 48


def _safe(where: Path, name: Any) -> None:
    """Raise BundleError where a path leads out of its folder or is none that every system writes as it stands."""
    parts = name.split("/") if isinstance(name, str) else [""]
    for part in parts:
        odd = part in ("", ".", "..") or len(part) > 200 or any(ord(c) < 32 or c in '\\:*?"<>|' for c in part)
        if odd or len(parts) > 32:
            raise BundleError(f"{where}: it names a path outside of its folder, or an impossible one: {name!r}")


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        handle = path.open("rb")
    except OSError as problem:
        raise BundleError(f"{path}: cannot be read: {problem.strerror}") from problem
    with handle:
        yield handle


@contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    """The bytes of a file without holding them; an empty file cannot be mapped."""
    if not path.stat().st_size:
        yield b""
        return
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


@contextmanager
def _fresh(out: Path) -> Iterator[IO[bytes]]:
    """A file that becomes `out` when all of it is written."""
    handle, name = tempfile.mkstemp(dir=out.absolute().parent, prefix=".edgeredux-")
    try:
        with os.fdopen(handle, "wb") as made:
            yield made
            made.flush()
            os.fsync(made.fileno())
        Path(name).chmod(0o644)
        Path(name).rename(out)
    finally:
        Path(name).unlink(missing_ok=True)
