"""Operators that look at the same elements in the same order through other axes, as Reshape does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.factors import (
    Factors,
    agree_by_factors,
    carry_flags,
    carry_known,
    common_factors,
    paired,
)
from edgeredux.passes.onnx.structure.facts import Flags, Known, flat_any, needed_by
from edgeredux.passes.onnx.structure.rule import Rule, given, label, nothing
from edgeredux.passes.onnx.structure.shape_entries import entries, write_entries
from edgeredux.passes.onnx.structure.state import State


class Reshaping(Rule):
    """Flatten, Squeeze and Unsqueeze, which say no sizes; Reshape adds its shape."""

    def factors(self, node: ir.Node, state: State) -> Factors:
        """How the axes of input and output are made of common ones."""
        value = node.inputs[0]
        assert value is not None
        before, after = state.symbols(value), state.symbols(node.outputs[0])
        if node.op_type in ("Squeeze", "Unsqueeze") and sum(s != 1 for s in before) == sum(s != 1 for s in after):
            return paired(before, after)
        return common_factors(before, after)

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        value = node.inputs[0]
        return [None if value is None else carry_known(state.known(value), self.factors(node, state))]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        back = self.factors(node, state).turned()
        return [carry_flags(state.wanted(node.outputs[0]), back), *[None] * (len(node.inputs) - 1)]

    def agree(self, node: ir.Node, state: State) -> None:
        value, out, factors = node.inputs[0], node.outputs[0], self.factors(node, state)
        assert value is not None
        for other in node.inputs[1:]:
            state.pin(other, None, f"{label(node)} reads sizes")
        sides = [(value, axis, numbers) for axis, numbers in enumerate(factors.before)]
        sides += [(out, axis, numbers) for axis, numbers in enumerate(factors.after)]
        agree_by_factors(sides, factors.sizes, f"{label(node)} mixes them with others", state)


class Reshape(Reshaping):
    """Sizes that the shape says as constants are fitted; -1 fits itself."""

    def agree(self, node: ir.Node, state: State) -> None:
        said = entries(node.inputs[1], state)
        for axis in range(len(state.dims(node.outputs[0]))):
            if said is None or len(said) <= axis or said[axis] is None:
                _follow_source(node, axis, axis, state)
        super().agree(node, state)

    def rewrite(self, node: ir.Node, state: State) -> None:
        out, said = node.outputs[0], entries(node.inputs[1], state)
        if said is None or not (state.is_cut(out) or state.is_cut(node.inputs[0])):
            return
        wanted = {}
        for axis, entry in enumerate(said):
            cut = state.cut(out, axis)
            if cut is None or entry is None or entry == -1:
                continue
            before = state.cut(node.inputs[0], axis) if axis < len(state.dims(given(node))) else None
            if entry == 0 and node.attributes.get_int("allowzero", 0) == 0:
                if before is not None and before.left == cut.left:
                    continue
            elif entry == cut.left:
                continue
            wanted[axis] = cut.left
        if wanted:
            write_entries(node, 1, wanted, state)


class DepthToSpace(Rule):
    """Channels are places of a block times channels of the output; whole channels of the output go."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        known, places = state.known(given(node)), node.attributes.get_int("blocksize", 1) ** 2
        known = known.same_along([0, 2, 3])
        channels = state.dims(given(node))[1]
        if channels is None:
            return [None]
        last = not _column_row(node)
        shape = (places, channels // places) if last else (channels // places, places)
        wide = [np.broadcast_to(array.reshape(-1), (channels,)).reshape(shape) for array in (known.mask, known.values)]
        same = Known(wide[0], wide[1]).same_along([0 if last else 1])
        return [Known(same.mask.reshape(1, -1, 1, 1), same.values.reshape(1, -1, 1, 1))]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        channels, places = state.dims(given(node))[1], node.attributes.get_int("blocksize", 1) ** 2
        if channels is None:
            return [None]
        read = np.broadcast_to(flat_any(state.wanted(node.outputs[0]), 1), (channels // places,))
        wide = np.repeat(read, places) if _column_row(node) else np.tile(read, places)
        return [wide.reshape(1, -1, 1, 1)]

    def agree(self, node: ir.Node, state: State) -> None:
        value, out, name = given(node), node.outputs[0], label(node)
        for one in (value, out):
            state.pin(one, [0, 2, 3], f"{name} needs all positions")
        channels, places = state.dims(value)[1], node.attributes.get_int("blocksize", 1) ** 2
        if channels is None:
            state.pin(out, [1], f"{name} has channels of dynamic number")
            return
        numbers = (1, 0) if _column_row(node) else (0, 1)
        sides = [(value, 1, numbers), (out, 1, (1,))]
        agree_by_factors(sides, [places, channels // places], f"{name} needs all of a block", state, whole=[0])


def _column_row(node: ir.Node) -> bool:
    """Whether a channel of the output lies together in the input, as pixel shuffle has it."""
    return node.attributes.get_string("mode", "DCR") == "CRD"


class Expand(Rule):
    """Axes of size 1 that are repeated may lose repetitions; all others go through."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        rank = len(state.dims(node.outputs[0]))
        found = state.known(given(node))
        lead = (1,) * (rank - found.mask.ndim)
        return [Known(found.mask.reshape(lead + found.mask.shape), found.values.reshape(lead + found.values.shape))]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        return [needed_by(state.wanted(node.outputs[0]), state.dims(given(node))), None]

    def agree(self, node: ir.Node, state: State) -> None:
        value, out = given(node), node.outputs[0]
        state.pin(node.inputs[1], None, f"{label(node)} reads sizes")
        said = entries(node.inputs[1], state)
        lead = len(state.dims(out)) - len(state.dims(value))
        for axis in range(len(state.dims(out))):
            size = state.dims(value)[axis - lead] if axis >= lead else 1
            place = axis - (len(state.dims(out)) - len(said or []))
            if size is None:
                state.pin(out, [axis], f"{label(node)} has an axis of dynamic size there")
            elif said is None or (place >= 0 and said[place] is None):
                _follow_source(node, axis, place, state)
            if size != 1 and axis >= lead:
                state.tie(value, axis - lead, out, axis, f"{label(node)} has an axis of dynamic size there")

    def rewrite(self, node: ir.Node, state: State) -> None:
        out, said = node.outputs[0], entries(node.inputs[1], state)
        if said is None:
            return
        lead = len(state.dims(out)) - len(said)
        wanted = {}
        for place, entry in enumerate(said):
            cut = state.cut(out, lead + place)
            if cut is not None and entry not in (None, 1, cut.left):
                wanted[place] = cut.left
        if wanted:
            write_entries(node, 1, wanted, state)


class Shape(Rule):
    """Reads sizes, no elements. A size may change where all that reads it is the shape of a Reshape or an Expand."""

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        return [nothing(len(state.dims(given(node))))]

    def agree(self, node: ir.Node, state: State) -> None:
        value, out = given(node), node.outputs[0]
        state.pin(out, [0], f"{label(node)} gives one size an axis")
        fitting = all(use.node.op_type in ("Reshape", "Expand") and use.idx == 1 for use in out.uses())
        axes = _axes(node, len(state.dims(value)))
        read = np.broadcast_to(state.needed(out), (len(axes),))
        if not fitting or out.is_graph_output():
            state.pin(value, [axis for axis in axes if read[axis - axes.start]], f"{label(node)} reads the size")


def _axes(node: ir.Node, rank: int) -> range:
    """The axes whose sizes a Shape gives."""
    start, stop, _ = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)).indices(rank)
    return range(start, max(start, stop))


def _follow_source(node: ir.Node, axis: int, place: int, state: State) -> None:
    """An entry of a shape that is computed: where it is the size of another value's axis, both lose the same."""
    said = node.inputs[1]
    shape = None if said is None else said.producer()
    out, cause = node.outputs[0], f"{label(node)} computes its shape"
    if shape is None or shape.op_type != "Shape" or place < 0 or not isinstance(state.rule(shape), Shape):
        state.pin(out, [axis], cause)
        return
    value = given(shape)
    axes = _axes(shape, len(state.dims(value)))
    if place >= len(axes):
        state.pin(out, [axis], cause)
    elif state.cut(out, axis) is not None or state.cut(value, axes[place]) is not None:
        state.tie(value, axes[place], out, axis, cause)
