"""What is known of a tensor in every run: which elements are always the same, and their values.

A fact about a tensor is an array of the same rank whose extents are 1 (the same at every position of that axis) or the
axis's size. Axes of dynamic size always have extent 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Flags: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"
Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Dims: TypeAlias = "tuple[int | None, ...]"  # None: dynamic

# No fact grows beyond this many elements: what would is treated as unknown.
MOST_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Known:
    """`values` holds where `mask` is true; the two broadcast against each other."""

    mask: Flags
    values: Array

    @staticmethod
    def nothing(rank: int) -> Known:
        """Nothing is known of a tensor of this rank."""
        return Known(np.zeros((1,) * rank, bool), np.zeros((1,) * rank, np.float32))

    @staticmethod
    def constant(array: Array) -> Known:
        """All is known."""
        return Known(np.ones((1,) * array.ndim, bool), array)

    @property
    def somewhere(self) -> bool:
        """Whether anything is known."""
        return bool(self.mask.any())

    @property
    def everywhere(self) -> bool:
        """Whether all is known."""
        return bool(self.mask.all())

    def zeros(self) -> Flags:
        """Where the tensor is known to be zero."""
        return self.mask & (self.values == 0) if self.somewhere else self.mask

    def same_along(self, axes: Sequence[int]) -> Known:
        """What holds at every position of these axes: extents of 1 there."""
        mask, values = self.mask, self.values
        for axis in axes:
            if mask.shape[axis] == 1 and values.shape[axis] == 1:
                continue
            first = values.take([0], axis)
            agrees = (values == first).all(axis=axis, keepdims=True)
            mask = mask.all(axis=axis, keepdims=True) & agrees
            values = first
        return Known(mask, values)

    def settled(self, dims: Dims) -> Known:
        """The same with the smallest extents that say it; what differs along a dynamic axis is forgotten."""
        mask, values = self.mask, self.values
        if not self.somewhere or max(mask.size, values.size) > MOST_ELEMENTS:
            return Known.nothing(len(dims))
        known = Known(mask, np.where(mask, values, np.zeros((), values.dtype)))
        for axis, size in enumerate(dims):
            if known.values.shape[axis] == 1:
                continue
            mask = np.broadcast_to(known.mask, known.values.shape)
            uniform = (mask == mask.take([0], axis)).all() and (known.values == known.values.take([0], axis)).all()
            if size is None or uniform:
                known = Known(mask, known.values).same_along([axis])
        return known


def any_along(flags: Flags, axes: Sequence[int]) -> Flags:
    """Whether it holds at any position of these axes: extents of 1 there."""
    return np.asarray(flags.any(axis=tuple(axes), keepdims=True)) if axes else flags


def flat_any(flags: Flags, axis: int) -> Flags:
    """Whether it holds at any position of all other axes: [extent of `axis`]."""
    return any_along(flags, [other for other in range(flags.ndim) if other != axis]).reshape(-1)


def aligned(array: Array, rank: int) -> Array:
    """Leading axes of extent 1 up to `rank`, as broadcasting adds them."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def widened(array: Array, axis: int, size: int) -> Array:
    """The array with this extent along the axis."""
    shape = list(array.shape)
    shape[axis] = size
    return np.broadcast_to(array, shape)


def needed_by(flags: Flags, dims: Dims) -> Flags:
    """Which elements of a tensor of `dims` a broadcast result reads that is wanted at `flags`."""
    lead = flags.ndim - len(dims)
    flags = any_along(flags, range(lead)).reshape(flags.shape[lead:])
    return any_along(flags, [axis for axis, size in enumerate(dims) if size == 1])


def along(flags: Flags, axis: int, size: int) -> Flags:
    """Where it holds at every position of all other axes: [size]."""
    others = tuple(other for other in range(flags.ndim) if other != axis)
    return np.broadcast_to(np.asarray(flags.all(axis=others)), (size,))
