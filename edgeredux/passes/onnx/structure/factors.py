"""How the axes of two views of the same elements in the same order are made of common factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.cuts import Causes, Cut
from edgeredux.passes.onnx.structure.facts import Array, Flags, Known, any_along
from edgeredux.passes.onnx.structure.state import State

Symbols: TypeAlias = "Sequence[int | str | None]"


@dataclass(frozen=True)
class Factors:
    """`before` and `after`: by axis, the numbers of its factors in order, None where that is not known.

    `sizes` by number of factor, None for one of dynamic size. An axis of size 1 has no factors.
    """

    sizes: tuple[int | None, ...]
    before: tuple[tuple[int, ...] | None, ...]
    after: tuple[tuple[int, ...] | None, ...]

    def turned(self) -> Factors:
        """The way back."""
        return Factors(self.sizes, self.after, self.before)


def common_factors(before: Symbols, after: Symbols) -> Factors:
    """The factors of a Reshape from the sizes `before` to the sizes `after` (names and None: dynamic).

    Equal leading sizes are the same axes, and so are trailing axes of equal products: [n, 768] to [n, 12, 64] has the
    factors n, 12, 64. What is left between is not known.
    """
    if _real(before) == _real(after) and None not in before:
        return paired(before, after)
    sizes: list[int | None] = []
    one: list[tuple[int, ...] | None] = [None] * len(before)
    two: list[tuple[int, ...] | None] = [None] * len(after)
    start = 0
    while start < min(len(before), len(after)) and before[start] is not None and before[start] == after[start]:
        size = before[start]
        if size == 1:
            one[start] = two[start] = ()
        else:
            one[start] = two[start] = (len(sizes),)
            sizes.append(size if isinstance(size, int) else None)
        start += 1
    end, stop = len(before), len(after)
    while True:
        block = _trailing(before[start:end], after[start:stop])
        if block is None:
            break
        first, second = end - block[0], stop - block[1]
        found = _refined(before[first:end], after[second:stop])
        if found is not None:
            made, parts, others = found
            for axis, part in zip(range(first, end), parts, strict=True):
                one[axis] = tuple(len(sizes) + number for number in part)
            for axis, part in zip(range(second, stop), others, strict=True):
                two[axis] = tuple(len(sizes) + number for number in part)
            sizes += made
        end, stop = first, second
    for axes, symbols in ((one, before), (two, after)):
        for axis, size in enumerate(symbols):
            if size == 1:
                axes[axis] = ()
    return _in_order(sizes, one, two)


def _in_order(
    sizes: Sequence[int | None], before: Sequence[tuple[int, ...] | None], after: Sequence[tuple[int, ...] | None]
) -> Factors:
    """Factors numbered from the front; both sides hold the same ones, in the same order."""
    order = [number for numbers in before for number in numbers or ()]
    place = {number: index for index, number in enumerate(order)}

    def renumbered(axes: Sequence[tuple[int, ...] | None]) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(None if numbers is None else tuple(place[number] for number in numbers) for numbers in axes)

    return Factors(tuple(sizes[number] for number in order), renumbered(before), renumbered(after))


def paired(before: Symbols, after: Symbols) -> Factors:
    """The factors where only axes of size 1 come and go."""
    real = _real(before)
    numbers = iter(range(len(real)))
    one = [() if size == 1 else (next(numbers),) for size in before]
    numbers = iter(range(len(real)))
    two = [() if size == 1 else (next(numbers),) for size in after]
    return Factors(tuple(size if isinstance(size, int) else None for size in real), tuple(one), tuple(two))


def _real(sizes: Symbols) -> list[int | str | None]:
    return [size for size in sizes if size != 1]


def _trailing(before: Symbols, after: Symbols) -> tuple[int, int] | None:
    """The fewest trailing axes of both that hold the same number of elements, by static sizes; None: there are none."""
    if before and after and isinstance(before[-1], str) and before[-1] == after[-1]:
        return 1, 1
    i, j, left, right = 0, 0, 1, 1
    while i == 0 or j == 0 or left != right:
        if (left <= right and i < len(before)) or j == len(after):
            i += 1
            size = before[-i] if i <= len(before) else None
            if not isinstance(size, int) or size < 1:
                return None
            left *= size
        else:
            j += 1
            size = after[-j]
            if not isinstance(size, int) or size < 1:
                return None
            right *= size
    return i, j


def _refined(
    first: Symbols, second: Symbols
) -> tuple[list[int | None], list[tuple[int, ...]], list[tuple[int, ...]]] | None:
    if isinstance(first[0], str):  # the same axis of dynamic size
        return [None], [(0,)], [(0,)]
    before, after = ([size for size in sizes if isinstance(size, int)] for sizes in (first, second))
    marks = sorted(
        {prod(before[:i]) for i in range(len(before) + 1)} | {prod(after[:i]) for i in range(len(after) + 1)}
    )
    if any(later % earlier for earlier, later in pairwise(marks)):
        return None
    place = {mark: number for number, mark in enumerate(marks)}

    def parts(sizes: Sequence[int]) -> list[tuple[int, ...]]:
        ends = [place[prod(sizes[:i])] for i in range(len(sizes) + 1)]
        return [tuple(range(first, last)) for first, last in pairwise(ends)]

    made: list[int | None] = [later // earlier for earlier, later in pairwise(marks)]
    return made, parts(before), parts(after)


def _reshaped(flags: Array, factors: Factors) -> Array:
    """Extents 1 or full by axis before, to extents by axis after."""
    shape: list[int] = []
    present: dict[int, int] = {}
    for axis, numbers in enumerate(factors.before):
        for number in numbers or ():
            size = factors.sizes[number]
            present[number] = len(shape)
            shape.append(size if size is not None and flags.shape[axis] > 1 else 1)
    flags = flags.reshape(shape)
    extents: list[int] = []
    target: list[int] = []
    for axis_numbers in factors.after:
        full = any(number in present and shape[present[number]] > 1 for number in axis_numbers or ())
        size = 1
        for number in axis_numbers or ():
            one = factors.sizes[number]
            extents.append((one or 1) if full else 1)
            size *= extents[-1]
        target.append(size)
    order = [number for numbers in factors.after for number in numbers or ()]
    assert order == sorted(order)
    return np.broadcast_to(flags.reshape([shape[present[number]] for number in order]), extents).reshape(target)


def carry_flags(flags: Flags, factors: Factors) -> Flags:
    """Where any element of the extents is wanted, seen through the other view."""
    return _reshaped(any_along(flags, _blurred(factors)), factors)


def carry_known(known: Known, factors: Factors) -> Known:
    """What is known, seen through the other view."""
    known = known.same_along(_blurred(factors))
    return Known(_reshaped(known.mask, factors), _reshaped(known.values, factors))


def _blurred(factors: Factors) -> list[int]:
    """Axes whose positions cannot be followed: of unknown factors, or of one that ends in an axis of dynamic size."""
    dynamic = set()
    for numbers in factors.after:
        if numbers is None or any(factors.sizes[number] is None for number in numbers):
            dynamic |= set(numbers or ())
    known = {number for numbers in factors.after for number in numbers or ()}
    return [
        axis
        for axis, numbers in enumerate(factors.before)
        if numbers is None or any(number in dynamic or number not in known for number in numbers)
    ]


def agree_by_factors(
    sides: Sequence[tuple[ir.Value, int, tuple[int, ...] | None]],
    sizes: Sequence[int | None],
    cause: str,
    state: State,
    *,
    whole: Sequence[int] = (),
) -> None:
    """Axes that share factors lose whole positions of a factor, and each the same.

    `sides`: value, axis, its factors in order (None: not known). A factor of dynamic size, or in an axis of dynamic
    size, loses nothing, nor do the factors `whole`.
    """
    own = state.cause(cause)
    allowed = [np.full(size or 1, size is not None and number not in whole) for number, size in enumerate(sizes)]
    reasons = [np.full(size or 1, own, np.int32) for size in sizes]
    open_sides: list[tuple[ir.Value, int, tuple[int, ...]]] = []
    for value, axis, numbers in sides:
        cut = state.cut(value, axis)
        if numbers is not None and cut is not None and all(sizes[number] is not None for number in numbers):
            open_sides.append((value, axis, numbers))
            for place, number in enumerate(numbers):
                _narrow(cut, [sizes[other] or 1 for other in numbers], place, allowed[number], reasons[number])
            continue
        state.pin(value, [axis], cause)
        for number in numbers or ():
            allowed[number][:] = False
    for value, axis, numbers in open_sides:
        shape = [sizes[number] or 1 for number in numbers]
        goes, why = np.zeros(shape, bool), np.full(shape, own, np.int32)
        for place, number in enumerate(numbers):
            wide = [-1 if other == place else 1 for other in range(len(numbers))]
            goes |= allowed[number].reshape(wide)
            why = np.where(why == own, reasons[number].reshape(wide), why)
        state.only(value, axis, goes.reshape(-1), why.reshape(-1).astype(np.int32))


def _narrow(cut: Cut, shape: Sequence[int], place: int, allowed: Flags, reasons: Causes) -> None:
    """Forbid, in place, the positions of a factor that this cut does not lose whole; the reason is the cut's own."""
    kept = np.moveaxis(cut.kept.reshape(shape), place, 0).reshape(shape[place], -1)
    causes = np.moveaxis(cut.cause.reshape(shape), place, 0).reshape(shape[place], -1)
    lost = allowed & kept.any(axis=1)
    reasons[lost] = np.take_along_axis(causes, kept.argmax(axis=1)[:, None], 1)[lost, 0]
    allowed &= ~kept.any(axis=1)
