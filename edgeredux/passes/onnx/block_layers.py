"""The linear layers whose weights can be stored in blocks, and the tables that they share them with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx import channels, files
from edgeredux.passes.onnx.blocks import Array
from edgeredux.passes.onnx.weights import transposed

# What may stand between the last layer and the graph's output.
_AFTER_HEAD = {"Add", "Cast", "Identity", "Reshape", "Squeeze", "Slice", "Mul", "Div", "Tanh"}


@dataclass(frozen=True, eq=False)
class Linear:
    """A MatMul or Gemm whose weight is constant, and where that comes from."""

    node: ir.Node
    weight: Array  # [outputs, inputs]
    source: ir.Value  # the initializer: read as it is, or through one Transpose
    turned: bool  # whether the initializer is stored as [inputs, outputs]
    is_head: bool


def as_linear(node: ir.Node, *, is_head: bool) -> Linear | None:
    """This MatMul or Gemm, where its weight is constant."""
    turn = node.inputs[1].producer() if node.inputs[1] is not None else None
    if turn is not None and turn.op_type == "Transpose" and turn.domain == "" and node.op_type == "MatMul":
        source = turn.inputs[0]
        table = files.constant(source)
        flips = list(turn.attributes.get_ints("perm", [1, 0])) == [1, 0]
        if source is None or table is None or not source.is_initializer() or not flips:
            return None
        if table.dtype != np.float32 or table.ndim != 2:
            return None
        return Linear(node, table, source, False, is_head)
    if not channels.is_linear(node) or node.inputs[1] is None or not node.inputs[1].is_initializer():
        return None
    return Linear(node, channels.rows(node), node.inputs[1], transposed(node), is_head)


def is_output_layer(node: ir.Node) -> bool:
    """Whether this layer's output is an output of the graph, but for element-wise operators and shapes."""
    value = node.outputs[0]
    while not value.is_graph_output():
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type not in _AFTER_HEAD or uses[0].node.graph is not node.graph:
            return False
        value = uses[0].node.outputs[0]
    return True


def is_same(table: ir.Value, linear: Linear) -> bool:
    """Whether a layer multiplies by this very table: the same initializer, or another of the same values turned."""
    if linear.source is table:
        return not linear.turned
    array = files.constant(table)
    return array is not None and array.shape == linear.weight.shape and np.array_equal(array, linear.weight)
