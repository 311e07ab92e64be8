"""What a constant channel added to its readers, added to their biases instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.facts import Array

if TYPE_CHECKING:
    from edgeredux.passes.onnx.structure.state import State


def add_bias(node: ir.Node, given: Array, state: State) -> None:
    """Add `given` [outputs] to what a linear operator puts out, before its outputs are cut.

    It goes into a bias that the operator has (third input, or the Add behind a MatMul), else into one of its own.
    """
    if not given.any():
        return
    out = node.outputs[0]
    if node.op_type != "MatMul":
        _into_input(node, given, state)
        return
    uses = list(out.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not out.is_graph_output():
        bias = uses[0].node.inputs[1 - uses[0].idx]
        own = state.array(bias)
        if own is not None and own.shape == given.shape:
            _replace(uses[0].node, 1 - uses[0].idx, own + given, state)
            return
    graph, axis = state.graph, len(state.dims(out)) - 1
    made = ir.node("Add", [out, state.constant(f"{out.name}_constant", given[~state.gone(out, axis)], out)])
    made.name = f"{node.name or out.name}_constant"
    if out.is_graph_output():  # whose name is the model's
        made.outputs[0].name, out.name = out.name, f"{out.name}_product"
    else:
        made.outputs[0].name = f"{out.name}_sum"
    made.outputs[0].type, made.outputs[0].shape = out.type, out.shape
    graph.insert_after(node, made)
    ir.convenience.replace_all_uses_with(out, made.outputs[0], replace_graph_outputs=True)
    made.replace_input_with(0, out)
    state.follow(out, made.outputs[0])


def _into_input(node: ir.Node, given: Array, state: State) -> None:
    """Gemm and Conv hold their bias as the third input."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    own = state.array(bias)
    if own is not None and own.shape[-1:] == given.shape:
        _replace(node, 2, own + given, state)
        return
    assert bias is None or own is not None, "the rules let constants go only where a bias can hold them"
    kept = (given if own is None else own + given)[..., ~state.gone(node.outputs[0], 1)]
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, state.constant(f"{node.outputs[0].name}_bias", kept, node.outputs[0]))


def can_hold(node: ir.Node, state: State) -> bool:
    """Whether a constant can go into the third input of this Gemm or Conv: it has none, or an initializer."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return bias is None or state.array(bias) is not None


def _replace(node: ir.Node, index: int, array: Array, state: State) -> None:
    """Give the node's own initializer another content of the same type; it is cut with the others later."""
    value = node.inputs[index]
    assert value is not None
    own = state.array(value)
    assert own is not None
    value.const_value = ir.tensor(np.ascontiguousarray(array.astype(own.dtype)), name=value.name)
