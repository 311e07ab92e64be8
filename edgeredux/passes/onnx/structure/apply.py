"""The cuts made: attributes and shapes fitted, constants cut, and what was dead but had to stay, with the reason."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.state import State

_LINEAR = {"MatMul": -1, "Gemm": 1, "Conv": 1, "ConvTranspose": 1}


def apply_cuts(state: State) -> dict[str, int]:
    """Make the cuts. By linear operator, how many of its output channels went."""
    cut = {}
    for node in state.nodes:
        axis = _output_axis(node, state)
        if axis is not None and (found := state.cut(node.outputs[0], axis)) is not None and found.gone.any():
            cut[str(node.name or node.outputs[0].name)] = int(found.gone.sum())
    for node in state.nodes:
        state.rule(node).rewrite(node, state)
    for value, axis, found in state.cuts():
        if value.is_initializer():
            assert value.const_value is not None
            array = np.compress(found.kept, value.const_value.numpy(), axis)
            value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
            value.shape = ir.Shape(array.shape)
        else:
            assert value.shape is not None
            value.shape = ir.Shape([found.left if place == axis else dim for place, dim in enumerate(value.shape)])
    return cut


def kept_dead(state: State) -> dict[str, int]:
    """Reason -> how many dead output channels of linear operators had to stay for it."""
    found: Counter[str] = Counter()
    for node in state.nodes:
        axis = _output_axis(node, state)
        if axis is None or (cut := state.cut(node.outputs[0], axis)) is None:
            continue
        stays = state.dead(node.outputs[0], axis) & cut.kept
        for number in cut.cause[stays]:
            found[state.causes[number]] += 1
    return dict(found.most_common())


def _output_axis(node: ir.Node, state: State) -> int | None:
    """The axis of the output channels of a linear operator with a constant weight."""
    if node.domain != "" or node.op_type not in _LINEAR or state.array(node.inputs[1]) is None:
        return None
    shape = node.outputs[0].shape
    return None if shape is None else _LINEAR[node.op_type] % len(shape)
