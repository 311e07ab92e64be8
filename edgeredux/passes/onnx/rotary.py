"""Rotary positions as exporters write them: half of each head turned by the other half."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgeredux.passes.onnx import files


@dataclass(frozen=True)
class Rotary:
    """`x` [batch, heads, sequence, size] turned in its first `turned` numbers by the angles of `cos` and `sin`."""

    x: ir.Value
    cos: ir.Value  # [batch, sequence, turned], its two halves equal
    sin: ir.Value
    turned: int


def rotary_of(value: ir.Value) -> Rotary | None:
    """What makes this value, when that is a rotation of all or of the first numbers of each head.

    Given   y = x * cos + Concat(-x[half:], x[:half]) * sin, or Concat(that of x[:turned], x[turned:])
    """
    joined = files.made_by(value, "Concat")
    if joined is not None and len(joined.inputs) == 2 and joined.inputs[0] is not None:
        part, rest = _whole(joined.inputs[0]), _sliced(joined.inputs[1])
        first = None if part is None else _sliced(part.x)
        if part is None or first is None or rest is None or first[0] is not rest[0]:
            return None
        size = _last(first[0])
        if (first[1], first[2]) != (0, part.turned) or rest[1] != part.turned or size is None or rest[2] < size:
            return None
        return Rotary(first[0], part.cos, part.sin, part.turned)
    return _whole(value)


def _whole(value: ir.Value) -> Rotary | None:
    add = files.made_by(value, "Add")
    if add is None:
        return None
    for one, other in ((0, 1), (1, 0)):
        straight, crossed = files.made_by(add.inputs[one], "Mul"), files.made_by(add.inputs[other], "Mul")
        if straight is None or crossed is None:
            continue
        for place in (0, 1):
            x, cos = straight.inputs[place], straight.inputs[1 - place]
            for at in (0, 1):
                turned, sin = crossed.inputs[at], crossed.inputs[1 - at]
                size = _last(x)
                if x is None or size is None or size % 2 or not _crosses(turned, x, size):
                    continue
                cosines, sines = _angles(cos, "Cos"), _angles(sin, "Sin")
                if cosines is not None and sines is not None and _last(cosines) == size:
                    return Rotary(x, cosines, sines, size)
    return None


def _crosses(value: ir.Value | None, x: ir.Value, size: int) -> bool:
    """Whether value is Concat(-x[half:], x[:half])."""
    joined = files.made_by(value, "Concat")
    if joined is None or len(joined.inputs) != 2 or joined.attributes.get_int("axis", 0) not in (-1, 3):
        return False
    negative = files.made_by(joined.inputs[0], "Neg")
    upper, lower = _sliced(negative.inputs[0] if negative is not None else None), _sliced(joined.inputs[1])
    if upper is None or lower is None or upper[0] is not x or lower[0] is not x:
        return False
    return upper[1] == size // 2 and upper[2] >= size and (lower[1], lower[2]) == (0, size // 2)


def _angles(value: ir.Value | None, kind: str) -> ir.Value | None:
    """Cosines or sines [batch, sequence, size] behind their [batch, 1, sequence, size], if both halves are equal."""
    apart = files.made_by(value, "Unsqueeze")
    axes = None if apart is None else files.constant(apart.inputs[1])
    if apart is None or axes is None or axes.tolist() != [1]:
        return None
    found = inner = apart.inputs[0]
    scaled = files.made_by(inner, "Mul")
    if scaled is not None:
        constants = [files.constant(entry) for entry in scaled.inputs]
        numbers = [index for index, array in enumerate(constants) if array is not None and array.size == 1]
        if len(numbers) != 1:
            return None
        inner = scaled.inputs[1 - numbers[0]]
    wave = files.made_by(inner, kind)
    twice = None if wave is None else files.made_by(wave.inputs[0], "Concat")
    if twice is None or len(twice.inputs) != 2 or twice.inputs[0] is not twice.inputs[1]:
        return None
    return found if twice.attributes.get_int("axis", 0) in (-1, 2) else None


def _sliced(value: ir.Value | None) -> tuple[ir.Value, int, int] | None:
    """Source, start and end of a slice of the last axis in steps of 1."""
    node = files.made_by(value, "Slice")
    if node is None or node.inputs[0] is None or len(node.inputs) < 4:
        return None
    numbers = [files.constant(entry) for entry in node.inputs[1:]]
    if any(array is None or array.size != 1 for array in numbers):
        return None
    start, end, axis, *step = [int(array.item()) for array in numbers if array is not None]
    return (node.inputs[0], start, end) if axis in (-1, 3) and step in ([], [1]) else None


def _last(value: ir.Value | None) -> int | None:
    if value is None or value.shape is None or not isinstance(value.shape[-1], int):
        return None
    return value.shape[-1]
