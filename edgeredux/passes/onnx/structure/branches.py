"""Branches that give a constant: what reads them reads the constant, and they go as nobody needs them any more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.structure.facts import Array
from edgeredux.passes.onnx.structure.state import State

_BINARY = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean"}
_MOST_ELEMENTS = 1 << 20


def cut_branches(state: State) -> list[str]:
    """Replace constant branches where the other operand alone gives the result its shape; the results' names.

    Given   y = Add(x, MatMul(h, 0)); z = Add(x, MatMul(h, 0) + b)
    Result  y = x;                    z = Add(x, b)
    """
    found = []
    alive = _depends(state)
    for node in state.nodes:
        if node.domain != "" or node.op_type not in _BINARY or len(node.inputs) != 2:
            continue
        out = node.outputs[0]
        if out.shape is None or state.known(out).everywhere:
            continue
        for index in (1, 0):
            value, other = node.inputs[index], node.inputs[1 - index]
            if value is None or other is None or id(value) not in alive or other.shape != out.shape:
                continue
            known = state.known(value) if value.shape is not None else None
            if known is None or not known.everywhere or max(known.mask.size, known.values.size) > _MOST_ELEMENTS:
                continue
            array = _least(known.values)
            if node.op_type in ("Add", "Sub", "Sum") and not array.any() and (index == 1 or node.op_type != "Sub"):
                if out.is_graph_output() and (other.is_graph_input() or other.is_graph_output()):
                    continue
                _bypass(node, other)
            else:
                node.replace_input_with(index, state.constant(f"{value.name}_constant", array, value))
            found.append(str(value.name))
            break
    return found


def _depends(state: State) -> set[int]:
    """Values that hang on an input of the graph: what does not is for constant folding."""
    found = {id(value) for value in state.graph.inputs}
    for node in state.nodes:
        if any(id(value) in found for value in (*node.inputs, *_captured(node))):
            found |= {id(out) for out in node.outputs}
    return found


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Values of the graph around that a node's subgraphs read."""
    for graph in files.subgraphs(node):
        for inner in graph.all_nodes():
            yield from (value for value in inner.inputs if value is not None)


def _least(array: Array) -> Array:
    """Without leading axes of extent 1, which broadcasting adds."""
    while array.ndim and array.shape[0] == 1:
        array = array[0]
    return np.ascontiguousarray(array)


def _bypass(node: ir.Node, value: ir.Value) -> None:
    """Let what reads this node's output read `value`; an output of the graph keeps its name."""
    out, graph = node.outputs[0], node.graph
    assert graph is not None
    name = out.name
    if out.is_graph_output():
        ir.convenience.replace_all_uses_with(out, value, replace_graph_outputs=True)
        out.name = f"{name}_gone"
        value.name = name
        value.shape, value.type = out.shape, out.type
    else:
        ir.convenience.replace_all_uses_with(out, value)
