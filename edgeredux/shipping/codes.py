"""Codes for a run of numbers most of which are one number, usually zero; lossless, the shortest one is taken.

    plain    the bytes, compressed
    planes   the first bytes of all numbers, then the second ones, ...: exponents lie together and compress
    mask     a bit for each number, set where it is not the frequent one; then the others as planes
    index    the distance from each other number to the next, a byte each (255: 255 more follow); then these as planes

Each stream is one zstd frame (RFC 8878). The frequent number is the most frequent byte for numbers of one byte (a zero
point need not be 0), else 0. Numbers are bit patterns here: -0.0 is not 0.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import zstandard

from edgeredux.errors import BundleError

CODES = ("plain", "planes", "mask", "index")
ITEMS = (1, 2, 4, 8)  # bytes of a number
LEVEL = 9
_WINDOW = 1 << 27  # bytes that a frame may make its reader hold

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"


@dataclass(frozen=True)
class Coded:
    """A run of `size` bytes, numbers of `item` bytes each, as frames of known expanded lengths."""

    code: str
    size: int
    item: int
    fill: int
    frames: tuple[bytes, ...]
    lengths: tuple[int, ...]

    @property
    def packed(self) -> int:
        """Bytes of all frames."""
        return sum(len(frame) for frame in self.frames)


def encode(data: bytes | memoryview, item: int) -> Coded:
    """The shortest of the codes for these bytes."""
    found = np.frombuffer(data, np.uint8)
    if len(found) % item:
        item = 1
    fill = int(np.bincount(found, minlength=256).argmax()) if item == 1 and len(found) else 0
    made = [_coded("plain", len(found), item, fill, [found])]
    if item > 1 and len(found):
        made.append(_coded("planes", len(found), item, fill, [_planes(found, item)]))
    numbers = found.reshape(-1, item)
    other = (numbers != fill).any(axis=1)
    if len(numbers) and 4 * int(other.sum()) < 3 * len(numbers):  # with fewer repeats neither of the two can win
        values = _planes(numbers[other].reshape(-1), item)
        made.append(_coded("mask", len(found), item, fill, [np.packbits(other), values]))
        made.append(_coded("index", len(found), item, fill, [_gaps(other), values]))
    return min(made, key=lambda coded: coded.packed)


def decode(coded: Coded) -> bytes:
    """The bytes again. Raises BundleError on frames that are damaged or that do not come to `size` bytes.

    No more is allocated than a few times `size`, whatever the frames say of themselves.
    """
    if coded.code not in CODES or coded.item not in ITEMS or coded.size % coded.item or not 0 <= coded.fill < 256:
        raise BundleError(f"packed file: unknown code {coded.code!r} of items of {coded.item} bytes")
    if coded.code in ("plain", "planes"):
        (data,) = _expanded(coded, [coded.size])
        return data.tobytes() if coded.code == "plain" else _unplanes(data, coded.item).tobytes()
    count = coded.size // coded.item
    marks, values = _expanded(coded, [(count + 7) // 8 if coded.code == "mask" else 2 * count + 8, coded.size])
    if coded.code == "mask":
        if len(marks) != (count + 7) // 8:
            raise BundleError("packed file: a mask of the wrong length")
        other = np.unpackbits(marks, count=count).astype(bool)
    else:
        other = _from_gaps(marks, count)
    if int(other.sum()) * coded.item != len(values):
        raise BundleError("packed file: the numbers do not fit their places")
    numbers = np.full((count, coded.item), coded.fill, np.uint8)
    numbers[other] = _unplanes(values, coded.item).reshape(-1, coded.item)
    return numbers.tobytes()


def _coded(code: str, size: int, item: int, fill: int, streams: Sequence[Bytes]) -> Coded:
    pressed = [zstandard.ZstdCompressor(level=LEVEL).compress(stream.tobytes()) for stream in streams]
    return Coded(code, size, item, fill, tuple(pressed), tuple(len(stream) for stream in streams))


def _expanded(coded: Coded, most: Sequence[int]) -> list[Bytes]:
    """The streams, none longer than `most` allows; frames that state another length are refused before any is read."""
    if len(coded.frames) != len(most) or len(coded.lengths) != len(most):
        raise BundleError(f"packed file: {len(coded.frames)} frames where {len(most)} are needed")
    found = []
    for frame, length, limit in zip(coded.frames, coded.lengths, most, strict=True):
        if not 0 <= length <= limit:
            raise BundleError(f"packed file: a stream of {length} bytes where {limit} at most can be")
        try:
            if zstandard.frame_content_size(frame) != length:
                raise BundleError("packed file: a frame states another length than its header")
            data = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as problem:
            raise BundleError(f"packed file: damaged data ({problem})") from problem
        if len(data) != length:
            raise BundleError("packed file: a frame states another length than it has")
        found.append(np.frombuffer(data, np.uint8))
    if coded.code in ("plain", "planes") and len(found[0]) != coded.size:
        raise BundleError("packed file: a part is shorter than it says")
    return found


def _planes(numbers: Bytes, item: int) -> Bytes:
    return np.ascontiguousarray(numbers.reshape(-1, item).T).reshape(-1)


def _unplanes(planes: Bytes, item: int) -> Bytes:
    return np.ascontiguousarray(planes.reshape(item, -1).T).reshape(-1)


def _gaps(other: np.ndarray[Any, np.dtype[np.bool_]]) -> Bytes:
    places = np.flatnonzero(other)
    steps = np.diff(places, prepend=-1) - 1  # numbers skipped before each
    long, rest = steps // 255, (steps % 255).astype(np.uint8)
    ends = np.cumsum(long + 1) - 1
    found = np.full(int((long + 1).sum()), 255, np.uint8)
    found[ends] = rest
    return found


def _from_gaps(gaps: Bytes, count: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    ends = gaps != 255
    places = (np.cumsum(gaps.astype(np.int64)) + np.cumsum(ends) - 1)[ends]
    if len(places) and not places[-1] < count:
        raise BundleError("packed file: an index beyond the end")
    other = np.zeros(count, np.bool_)
    other[places] = True
    return other
