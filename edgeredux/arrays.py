"""Array data for models that take no text: .npz files, or synthetic inputs like the model's examples."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux.data import SHARES, Part
from edgeredux.errors import DataError, one_line
from edgeredux.seams import Feed

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ArrayData:
    """Feeds of one sample each (batch axis of length 1), split into the three parts by position in a fixed shuffle."""

    source: str
    parts: Mapping[Part, tuple[Feed, ...]]
    sha256: str

    def describe(self) -> dict[str, Any]:
        """What the report says of the data."""
        return {"source": self.source, "sha256": self.sha256, **{name: len(self.parts[name]) for name, _ in SHARES}}


def read_npz(source: str, like: Mapping[str, np.ndarray[Any, Any]]) -> ArrayData:
    """Arrays by input name; every one must fit the example input but for the batch axis. Raises DataError."""
    import numpy as np

    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"data {source}: no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as problem:
        raise DataError(one_line(f"data {source}: no readable .npz file: {problem}")) from problem
    for name, example in like.items():
        if name not in arrays:
            raise DataError(f"data {source}: no array {name!r}. It holds: {', '.join(arrays) or 'none'}")
        if arrays[name].shape[1:] != example.shape[1:]:
            raise DataError(
                f"data {source}: {name!r} has samples of shape {arrays[name].shape[1:]}, not {example.shape[1:]}"
            )
        if np.issubdtype(arrays[name].dtype, np.floating) and not np.isfinite(arrays[name]).all():
            raise DataError(f"data {source}: {name!r} holds NaN or infinite values")
    counts = {arrays[name].shape[0] for name in like}
    if len(counts) != 1:
        raise DataError(f"data {source}: the arrays have different numbers of samples: {sorted(counts)}")
    total = counts.pop()
    if total < 48:
        raise DataError(f"data {source}: {total} samples; at least 48 are needed for three parts")
    feeds = [{name: arrays[name][i : i + 1].astype(like[name].dtype) for name in like} for i in range(total)]
    return split(source, feeds)


def split(source: str, feeds: list[Feed]) -> ArrayData:
    """The feeds in three parts, by the hash of their bytes (ties and duplicates stay on one side)."""
    digest = hashlib.sha256()
    parts: dict[Part, list[Feed]] = {name: [] for name, _ in SHARES}
    for feed in feeds:
        one = hashlib.sha256()
        for name in sorted(feed):
            one.update(feed[name].tobytes())
        digest.update(one.digest())
        place = int.from_bytes(one.digest()[:8], "big") % 100
        for part, share in SHARES:
            place -= share
            if place < 0:
                parts[part].append(feed)
                break
    for part, _ in SHARES:
        if not parts[part]:
            raise DataError(f"data {source}: {len(feeds)} samples leave none for {part}; give more")
    return ArrayData(source, {name: tuple(value) for name, value in parts.items()}, digest.hexdigest())
