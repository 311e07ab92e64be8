"""The weights of a graph's linear operators, read through whatever quantisation they are stored in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.blocks import unpack

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

_QDQ = "behind a Q/DQ pair, where TensorRT has been seen not to take sparse kernels (#4065, #4694); measure, or build"
_QDQ += " int8 from the float graph with a calibration cache"
_BETWEEN = "{} between DequantizeLinear and the operator: TensorRT folds the pair into the weight only where they touch"
_POINT = "its zero point is not 0: TensorRT takes symmetric weights only"
_FOREIGN = "{} is an operator of ONNX Runtime, which TensorRT does not read"
_DYNAMIC = "{} quantises while running, which TensorRT does not"


@dataclass(frozen=True)
class Weight:
    """`kept`: bool, False where the weight is zero, axes as stored; `axis`: the one along which inputs lie."""

    node: ir.Node
    name: str
    kept: Array
    axis: int
    risks: tuple[str, ...]

    @property
    def zeros(self) -> int:
        """How many of the weight's elements are zero."""
        return int((~self.kept).sum())


def weights(graph: ir.Graph) -> Iterator[Weight]:
    """The constant weight of every MatMul, Gemm and Conv, float or quantised, in graph order."""
    for node in graph:
        found = _read(node)
        if found is not None:
            yield found


def _read(node: ir.Node) -> Weight | None:
    name, kind = str(node.name), node.op_type
    if kind == "MatMulNBits":
        return _blocks(node)
    if node.domain != "" or len(node.inputs) < 2:
        return None
    if kind in ("MatMul", "Gemm", "Conv"):
        kept, risks = _through(node.inputs[1])
    elif kind in ("MatMulInteger", "ConvInteger"):
        kept, risks = _integers(node, 1, 3), (_DYNAMIC.format(kind),)
    elif kind in ("QLinearMatMul", "QLinearConv"):
        kept, risks = _integers(node, 3, 5), (_DYNAMIC.format(kind).replace("while running", "by itself"),)
    else:
        return None
    if kept is None or kept.ndim < 2 or (kind in ("MatMul", "MatMulInteger", "QLinearMatMul") and kept.ndim != 2):
        return None
    if kind == "Gemm":
        axis = 1 if node.attributes.get_int("transB", 0) else 0
    else:
        axis = 1 if kind.endswith("Conv") or kind == "ConvInteger" else 0
    return Weight(node, name, kept, axis, risks)


def _through(value: ir.Value | None) -> tuple[Array | None, tuple[str, ...]]:
    """Where a weight is not zero, followed back through transposes and its Q/DQ pair, and what they risk."""
    turns: list[list[int]] = []
    risks: list[str] = []
    while value is not None and files.constant(value) is None:
        node = value.producer()
        if node is None or node.domain not in ("", "com.microsoft"):
            return None, ()
        if node.op_type == "Transpose":
            turns.insert(0, list(node.attributes.get_ints("perm", [])))
            behind = node.inputs[0].producer() if node.inputs[0] is not None else None
            if behind is not None and behind.op_type == "DequantizeLinear":
                risks.append(_BETWEEN.format("Transpose"))
        elif node.op_type == "DequantizeLinear":
            risks.append(_QDQ)
            stored = files.constant(node.inputs[0])
            if stored is not None:
                kept = _integers(node, 0, 2)
                if (point := _constant(node, 2)) is not None and point.any():
                    risks.append(_POINT)
                return _turned(kept, turns), tuple(risks)
        elif node.op_type != "QuantizeLinear":
            return None, ()
        value = node.inputs[0]
    array = files.constant(value)
    return (None if array is None else _turned(array != 0, turns)), tuple(risks)


def _turned(array: Array | None, turns: list[list[int]]) -> Array | None:
    for perm in turns:
        array = None if array is None else array.transpose(perm or None)
    return array


def _constant(node: ir.Node, index: int) -> Array | None:
    return files.constant(node.inputs[index]) if len(node.inputs) > index else None


def _integers(node: ir.Node, index: int, point: int) -> Array | None:
    """Where integers are not their zero point: one for all, or one an output channel of whatever axis fits."""
    array, zero = _constant(node, index), _constant(node, point)
    if array is None or zero is None or zero.size == 1 or not zero.any():
        return None if array is None else array != (0 if zero is None or not zero.any() else zero.reshape(()))
    axis = next((axis for axis, size in reversed(list(enumerate(array.shape))) if size == zero.size), None)
    if axis is None:
        return None
    return np.asarray(array != zero.reshape([-1 if place == axis else 1 for place in range(array.ndim)]))


def _blocks(node: ir.Node) -> Weight | None:
    packed, points = _constant(node, 1), _constant(node, 3)
    bits, inputs = node.attributes.get_int("bits", 4), node.attributes.get_int("K", 0)
    if packed is None or packed.ndim != 3 or points is not None or bits not in (4, 8):
        return None
    kept = unpack(packed, 4 if bits == 4 else 8, inputs) != 1 << (bits - 1)
    return Weight(node, str(node.name), kept, 1, (_FOREIGN.format(node.op_type),))
