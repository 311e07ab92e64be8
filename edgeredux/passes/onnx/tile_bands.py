"""Bands: outputs of a linear operator that read the same inputs, found from the zeros of its weight alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Indices: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
Flags: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"

_SPLITS = (2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class Band:
    """Outputs `start` to `stop` read the inputs `columns` (ascending) and no other."""

    start: int
    stop: int
    columns: Indices

    @property
    def outputs(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Groups:
    """A label for every output; the row `supports[label]` says which inputs the outputs with this label read."""

    labels: Indices
    supports: Flags

    def bands(self) -> tuple[Band, ...]:
        """One band per run of equal labels, in output order."""
        edges = [0, *(np.flatnonzero(np.diff(self.labels)) + 1).tolist(), len(self.labels)]
        return tuple(
            Band(start, stop, np.flatnonzero(self.supports[self.labels[start]]).astype(np.int64))
            for start, stop in itertools.pairwise(edges)
        )


def groupings(kept: Flags, most: int) -> list[Groups]:
    """Ways to see a matrix [outputs, inputs] of non-zeros as at most `most` groups that cover all of them.

    By equal rows, wherever they are (rows with a few more zeros join the smallest row that holds them), and by equal
    contiguous parts, where every row has zeros of its own. No group reads nothing: no runtime takes such a matrix.
    """
    found = [_by_equal_rows(kept, most)]
    found += [_by_parts(kept, parts) for parts in (1, *_SPLITS) if parts <= most and len(kept) % parts == 0]
    return [groups for groups in found if groups is not None]


def _by_equal_rows(kept: Flags, most: int) -> Groups | None:
    packed, first, which, counts = np.unique(
        np.packbits(kept, axis=1), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    # The order of first appearance, so that labels ascend where rows already lie band by band.
    order = sorted(range(len(packed)), key=lambda index: (-counts[index], first[index]))
    heads = sorted((i for i in order[:most] if counts[i] * 4 * most >= len(kept)), key=lambda i: first[i])
    if not heads:
        return None
    supports = kept[first[heads]]
    sizes = supports.sum(axis=1)
    label_of = np.full(len(packed), -1, np.int64)
    label_of[heads] = np.arange(len(heads))
    for index in range(len(packed)):
        if label_of[index] < 0:
            holding = np.flatnonzero((supports | ~kept[first[index]]).all(axis=1))
            if not len(holding):
                return None
            label_of[index] = holding[np.argmin(sizes[holding])]
    return _sound(label_of[which.reshape(-1)], supports)


def _by_parts(kept: Flags, parts: int) -> Groups:
    supports: Flags = np.asarray(kept.reshape(parts, -1, kept.shape[1]).any(axis=1))
    return _sound(np.repeat(np.arange(parts), len(kept) // parts), supports)


def _sound(labels: Indices, supports: Flags) -> Groups:
    supports = supports.copy()
    supports[~supports.any(axis=1), 0] = True
    return Groups(labels, supports)


def block(columns: Indices, inputs: int) -> int:
    """The largest block such that `columns` are whole aligned blocks of it: 1 where they are scattered."""
    edges = np.flatnonzero(np.diff(columns) > 1)
    found = math.gcd(inputs, int(columns[0]), int(columns[-1]) + 1)
    for edge in edges.tolist():
        found = math.gcd(found, int(columns[edge]) + 1, int(columns[edge + 1]))
    return found


def contiguous(columns: Indices) -> bool:
    """Whether the columns are one slice."""
    return int(columns[-1]) - int(columns[0]) + 1 == len(columns)


def density(bands: Sequence[Band], outputs: int, inputs: int) -> float:
    """The share of multiplications that is left."""
    return sum(band.outputs * len(band.columns) for band in bands) / (outputs * inputs)
