"""Operators that treat the channels on axis 1 one by one: pooling, resizing, normalisation by channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.facts import Flags, Known, any_along, flat_any
from edgeredux.passes.onnx.structure.rule import Rule, given, label
from edgeredux.passes.onnx.structure.shape_entries import entries, write_entries
from edgeredux.passes.onnx.structure.state import State


class Channelwise(Rule):
    """Pooling: channels go through. A constant channel stays one where no padding comes in."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        known = state.known(given(node))
        same = known.same_along([axis for axis in range(known.mask.ndim) if axis != 1])
        mask = same.mask if _keeps_constants(node) else same.zeros()
        return [Known(mask, same.values), *[None] * (len(node.outputs) - 1)]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        wanted = state.wanted(node.outputs[0])
        for out in node.outputs[1:]:
            wanted = wanted | state.needed(out)
        return [any_along(wanted, [0, *range(2, wanted.ndim)]), *[None] * (len(node.inputs) - 1)]

    def agree(self, node: ir.Node, state: State) -> None:
        value = given(node)
        if len(node.outputs) > 1:  # places of maxima, counted through all channels
            super().agree(node, state)
            return
        for other in node.inputs[1:]:
            state.pin(other, None, f"{label(node)} reads it as a whole")
        for out in node.outputs:
            state.tie(value, 1, out, 1, f"{label(node)} has channels of dynamic number")
        for one in (value, *node.outputs):
            state.pin(one, [0, *range(2, len(state.dims(one)))], f"{label(node)} needs all positions")


class Resize(Channelwise):
    """Resize and Upsample that leave the channels alone."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        return super().known(node, state) if self._leaves_channels(node, state) else [None]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        return super().needed(node, state) if self._leaves_channels(node, state) else [None] * len(node.inputs)

    def agree(self, node: ir.Node, state: State) -> None:
        if not self._leaves_channels(node, state):
            Rule.agree(self, node, state)
            return
        super().agree(node, state)

    def rewrite(self, node: ir.Node, state: State) -> None:
        cut = state.cut(node.outputs[0], 1)
        if cut is not None and cut.gone.any() and len(node.inputs) > 3 and node.inputs[3] is not None:
            write_entries(node, 3, {1: cut.left}, state)

    @staticmethod
    def _leaves_channels(node: ir.Node, state: State) -> bool:
        if node.attributes.get_ints("axes", None) or node.attributes.get_string(
            "coordinate_transformation_mode", ""
        ) in ("tf_crop_and_resize",):
            return False
        sizes = node.inputs[3] if len(node.inputs) > 3 else None
        if state.dims(given(node))[1] != state.dims(node.outputs[0])[1]:
            return False
        if sizes is None:
            return True
        said = entries(sizes, state)
        return said is not None and len(said) > 1 and said[1] is not None


class Normalised(Rule):
    """BatchNormalization in inference, InstanceNormalization: per-channel vectors beside the input.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias. A channel of scale 0 is its bias, whatever finite x comes.
    """

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        if not _inference(node):
            return [None] * len(node.outputs)
        vectors = [state.array(value) for value in node.inputs[1:]]
        known = state.known(given(node))
        rank = known.mask.ndim
        scale, bias = vectors[0], vectors[1]
        if scale is None or bias is None:
            return [None]
        shape = (1, -1) + (1,) * (rank - 2)
        wide = [None if vector is None else vector.astype(np.float64).reshape(shape) for vector in vectors[2:]]
        off = np.broadcast_to(scale.reshape(shape) == 0, (1, len(scale)) + (1,) * (rank - 2))
        values = np.broadcast_to(bias.reshape(shape), np.broadcast_shapes(known.mask.shape, off.shape))
        if node.op_type == "InstanceNormalization":  # what a constant other than 0 gives hangs on rounding
            return [Known(off | known.zeros(), values)]
        mean, variance = wide
        if mean is None or variance is None:
            return [Known(off, values)]
        start = np.where(known.mask, known.values, 0).astype(np.float64)
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        made = (start - mean) / np.sqrt(variance + epsilon) * scale.reshape(shape) + bias.reshape(shape)
        return [Known(off | known.mask, np.where(off, values, made).astype(bias.dtype))]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        if not _inference(node):
            return [None] * len(node.inputs)
        wanted = state.wanted(node.outputs[0])
        flags = wanted
        if node.op_type == "InstanceNormalization":
            flags = any_along(wanted, range(2, wanted.ndim))
        return [flags, *[flat_any(wanted, 1)] * (len(node.inputs) - 1)]

    def agree(self, node: ir.Node, state: State) -> None:
        if not _inference(node):
            state.pin_all(node, f"{label(node)} is in training mode")
            return
        value, out = given(node), node.outputs[0]
        for axis in range(len(state.dims(value))):
            if axis != 1 and node.op_type == "InstanceNormalization":
                state.pin(value, [axis], f"{label(node)} mixes its positions")
                state.pin(out, [axis], f"{label(node)} mixes its positions")
            else:
                state.tie(value, axis, out, axis, f"{label(node)} has an axis of dynamic size there")
        for vector in node.inputs[1:]:
            state.tie(vector, 0, out, 1, f"{label(node)} has channels of dynamic number")


def _inference(node: ir.Node) -> bool:
    return len(node.outputs) == 1 and node.attributes.get_int("training_mode", 0) == 0


def _keeps_constants(node: ir.Node) -> bool:
    """Whether a constant channel comes out the same: MaxPool pads with nothing, AveragePool may pad with zeros."""
    if node.op_type in ("LpPool", "GlobalLpPool"):
        return False
    if node.op_type != "AveragePool":
        return True
    padded = any(node.attributes.get_ints("pads", [0])) or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    counted = node.attributes.get_int("count_include_pad", 0) == 1
    return not (counted and (padded or node.attributes.get_int("ceil_mode", 0) == 1))
