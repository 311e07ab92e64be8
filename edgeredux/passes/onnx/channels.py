"""The part of a graph that treats the output channels of one linear operator one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx import files

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"

_ALONE = {
    *("Relu", "Gelu", "Erf", "Sigmoid", "Tanh", "Identity", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign"),
    *("Neg", "Abs", "Exp", "HardSigmoid", "HardSwish", "Mish", "Celu", "Clip", "Sqrt", "Pow"),
}
_TOGETHER = {"Add", "Sub", "Mul", "Div"}


@dataclass
class Region:
    """From a linear operator to the linear operators that read its channels, and channelwise nodes alone between.

    `nodes` in graph order; `constants` are their per-channel constants (node, input).
    """

    producer: ir.Node
    rank: int | None  # of the values after a Conv, channels on axis 1; None: channels on the last axis
    nodes: list[ir.Node] = field(default_factory=list)
    constants: list[tuple[ir.Node, int]] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)


def weight(node: ir.Node, index: int = 1) -> Array | None:
    """A float32 constant that this linear operator has as input `index`."""
    array = files.constant(node.inputs[index]) if len(node.inputs) > index else None
    return array.astype(np.float32, copy=False) if array is not None and array.dtype == np.float32 else None


def is_linear(node: ir.Node) -> bool:
    """MatMul by a constant matrix, plain Gemm, or Conv without groups: what channels can be cut from."""
    array = weight(node)
    if node.domain != "" or array is None:
        return False
    if node.op_type == "MatMul":
        return array.ndim == 2
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = weight(node, 2) if has_bias else None
    if has_bias and (bias is None or bias.ndim != 1):
        return False
    if node.op_type == "Gemm":
        plain = node.attributes.get_float("alpha", 1.0) == 1.0 and node.attributes.get_float("beta", 1.0) == 1.0
        same = bias is None or bias.size == rows(node).shape[0]
        return plain and same and node.attributes.get_int("transA", 0) == 0
    return node.op_type == "Conv" and node.attributes.get_int("group", 1) == 1


def rows(node: ir.Node) -> Array:
    """The weight as [output channels, input channels, ...]."""
    array = weight(node)
    assert array is not None
    turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 0)
    return array.T if turned else array


def region(producer: ir.Node) -> Region | None:
    """The region of a linear operator; None when one channel could reach anything in another way."""
    found = Region(producer, rows(producer).ndim if producer.op_type == "Conv" else None)
    size = rows(producer).shape[0]
    inside = {id(producer.outputs[0])}
    graph = producer.graph
    if graph is None or producer.outputs[0].is_graph_output():
        return None
    # Graph order is topological: one walk sees every value before its uses.
    for node in graph:
        touched = [index for index, value in enumerate(node.inputs) if value is not None and id(value) in inside]
        if not touched:
            continue
        if touched == [0] and is_linear(node) and (node.op_type == "Conv") == (producer.op_type == "Conv"):
            if rows(node).shape[1] != size:
                return None
            found.readers.append(node)
            continue
        constants = _channelwise(node, touched, size, found.rank)
        if constants is None or any(value.is_graph_output() for value in node.outputs):
            return None
        found.nodes.append(node)
        found.constants += [(node, index) for index in constants]
        inside.add(id(node.outputs[0]))
    uses = sum(1 for node in (producer, *found.nodes) for _ in node.outputs[0].uses())
    seen = sum(1 for node in (*found.nodes, *found.readers) for value in node.inputs if value and id(value) in inside)
    return found if found.readers and uses == seen else None  # a use inside a subgraph is not seen


def _channelwise(node: ir.Node, touched: list[int], size: int, rank: int | None) -> list[int] | None:
    """The inputs that are per-channel constants, for a node that keeps channels apart; None for any other node."""
    if node.domain != "" or len(node.outputs) != 1:
        return None
    if node.op_type in _ALONE:
        others = [files.constant(value) for value in node.inputs[1:] if value is not None]
        return [] if touched == [0] and all(other is not None and other.size == 1 for other in others) else None
    if node.op_type not in _TOGETHER:
        return None
    found = []
    for index, value in enumerate(node.inputs):
        if index in touched:
            continue
        array = files.constant(value)
        if array is None:
            return None
        if array.size == 1 and (rank is None or array.ndim <= rank):
            continue
        place = array.ndim - 1 if rank is None else array.ndim - rank + 1
        if array.size != size or not 0 <= place < array.ndim or array.shape[place] != size:
            return None
        found.append(index)
    return found
