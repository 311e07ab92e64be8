"""Constants that a pass gives to a node: new initializers, never a change of one that others may read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.channels import Array


def transposed(node: ir.Node) -> bool:
    """Whether this linear operator stores its weight as [inputs, outputs]."""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 0)


def stored(node: ir.Node, table: Array) -> Array:
    """A weight [outputs, inputs, ...] as this linear operator stores it."""
    return np.ascontiguousarray(table.T if transposed(node) else table)


def give(node: ir.Node, index: int, array: np.ndarray[Any, np.dtype[np.generic]], suffix: str) -> None:
    """Give a node a constant of its own as input `index`: the one it had may be shared."""
    graph = node.graph
    assert graph is not None
    value = initializer(graph, f"{node.outputs[0].name}_{suffix}", array)
    if index == len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def initializer(graph: ir.Graph | ir.Function, stem: str, array: np.ndarray[Any, np.dtype[np.generic]]) -> ir.Value:
    """A new initializer of the graph, named `stem` and the first free number."""
    assert isinstance(graph, ir.Graph)
    count = 0
    while (name := f"{stem}{count}") in graph.initializers:
        count += 1
    value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    graph.register_initializer(value)
    return value
