"""Operators whose every output hangs on all positions of some axes: Softmax, normalisation, reductions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.facts import Flags, Known, any_along, needed_by
from edgeredux.passes.onnx.structure.rule import Rule, label
from edgeredux.passes.onnx.structure.state import State


class Mixing(Rule):
    """Softmax, LayerNormalization and the like keep the shape: mixed axes lose nothing, all others go through.

    Fewer positions on a mixed axis are another sum, mean or variance: not the same function, so never cut.
    """

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        out = node.outputs[0]
        flags = any_along(state.wanted(out), mixed(node, len(state.dims(out))))
        return [flags, *[None] * (len(node.inputs) - 1)]

    def agree(self, node: ir.Node, state: State) -> None:
        value, name = node.inputs[0], label(node)
        assert value is not None
        summed = mixed(node, len(state.dims(value)))
        for other in (*node.inputs[1:], *node.outputs[1:]):
            state.pin(other, None, f"{name} mixes this axis")
        for axis in range(len(state.dims(value))):
            if axis in summed or len(node.outputs) > 1:
                state.pin(value, [axis], f"{name} mixes this axis")
                state.pin(node.outputs[0], [axis], f"{name} mixes this axis")
            else:
                state.tie(value, axis, node.outputs[0], axis, f"{name} has an axis of dynamic size there")


class Reduction(Rule):
    """ReduceMean and the like: reduced axes lose nothing, all others go through."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        value = node.inputs[0]
        axes = None if value is None else _reduced(node, state)
        if value is None or axes is None:
            return [None]
        same = state.known(value).same_along(axes)
        if node.op_type in ("ReduceLogSum", "ReduceLogSumExp"):
            return [None]
        mask = same.mask if node.op_type in ("ReduceMean", "ReduceMax", "ReduceMin") else same.zeros()
        return [_squeezed(Known(mask, same.values), node, axes)]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        value = node.inputs[0]
        axes = None if value is None else _reduced(node, state)
        if value is None or axes is None:
            return [None] * len(node.inputs)
        wanted = state.wanted(node.outputs[0])
        if not _kept(node):
            wanted = np.expand_dims(wanted, tuple(axes))
        return [needed_by(wanted, state.dims(value)), *[None] * (len(node.inputs) - 1)]

    def agree(self, node: ir.Node, state: State) -> None:
        value, out, name = node.inputs[0], node.outputs[0], label(node)
        axes = None if value is None else _reduced(node, state)
        if value is None or axes is None:
            state.pin_all(node, f"{name} computes its axes")
            return
        for other in node.inputs[1:]:
            state.pin(other, None, f"{name} reads axes")
        place = 0
        for axis in range(len(state.dims(value))):
            if axis in axes:
                state.pin(value, [axis], f"{name} mixes this axis")
                place += _kept(node)
            else:
                state.tie(value, axis, out, place, f"{name} has an axis of dynamic size there")
                place += 1


def mixed(node: ir.Node, rank: int) -> list[int]:
    """The axes over which a Softmax or a normalisation sums; before opset 13 a Softmax takes all from its axis on."""
    axis = node.attributes.get_int("axis", -1)
    axis = axis + rank if axis < 0 else axis
    graph = node.graph
    version = graph.opset_imports.get("", 20) if graph is not None else 20
    if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and version < 13:
        axis = node.attributes.get_int("axis", 1)
        return list(range(axis + rank if axis < 0 else axis, rank))
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        return list(range(axis, rank))
    return [axis]


def _kept(node: ir.Node) -> bool:
    return node.attributes.get_int("keepdims", 1) == 1


def _reduced(node: ir.Node, state: State) -> list[int] | None:
    """The axes; None where they are not constant."""
    value = node.inputs[0]
    assert value is not None
    rank = len(state.dims(value))
    said = node.attributes.get_ints("axes", None)
    if said is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = state.array(node.inputs[1])
        if array is None:
            return None
        said = [int(axis) for axis in array.reshape(-1)]
    if not said:
        return [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank))
    return [axis + rank if axis < 0 else axis for axis in said]


def _squeezed(known: Known, node: ir.Node, axes: Sequence[int]) -> Known:
    if _kept(node):
        return known
    return Known(known.mask.squeeze(tuple(axes)), known.values.squeeze(tuple(axes)))
