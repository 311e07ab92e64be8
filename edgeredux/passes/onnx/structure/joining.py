"""Concat and Split: axes put one behind the other, and taken apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.facts import Array, Flags, Known, any_along, widened
from edgeredux.passes.onnx.structure.moving import tie_places
from edgeredux.passes.onnx.structure.rule import Rule, given, label
from edgeredux.passes.onnx.structure.shape_entries import write_entries
from edgeredux.passes.onnx.structure.state import State


class Concat(Rule):
    """The inputs one behind the other."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        axis, sizes = _parts(node, node.inputs, state)
        if None in sizes:
            return [None]
        facts = [state.known(value) for value in node.inputs if value is not None]
        masks = [widened(fact.mask, axis, size or 1) for fact, size in zip(facts, sizes, strict=True)]
        values = [widened(fact.values, axis, size or 1) for fact, size in zip(facts, sizes, strict=True)]
        return [Known(_joined(masks, axis), _joined(values, axis))]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        axis, sizes = _parts(node, node.inputs, state)
        wanted = state.wanted(node.outputs[0])
        if None in sizes or wanted.shape[axis] == 1:
            return [any_along(wanted, [axis])] * len(node.inputs)
        stops = np.cumsum([size or 0 for size in sizes])[:-1]
        return list(np.split(wanted, stops, axis))

    def agree(self, node: ir.Node, state: State) -> None:
        axis, sizes = _parts(node, node.inputs, state)
        _agree_in_parts(node, node.outputs[0], node.inputs, axis, sizes, state)


class Split(Rule):
    """The other way round."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        axis, sizes = _parts(node, node.outputs, state)
        known = state.known(given(node))
        if None in sizes:
            return [known.same_along([axis])] * len(sizes)
        size = state.dims(given(node))[axis] or 1
        stops = np.cumsum([part or 0 for part in sizes])[:-1]
        masks = np.split(widened(known.mask, axis, size), stops, axis)
        values = np.split(widened(known.values, axis, size), stops, axis)
        return [Known(mask, value) for mask, value in zip(masks, values, strict=True)]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        axis, sizes = _parts(node, node.outputs, state)
        flags = [state.wanted(out) for out in node.outputs]
        if None in sizes:
            found = any_along(np.logical_or.reduce(np.broadcast_arrays(*flags)), [axis])
        else:
            found = _joined([widened(part, axis, size or 1) for part, size in zip(flags, sizes, strict=True)], axis)
        return [found, *[None] * (len(node.inputs) - 1)]

    def agree(self, node: ir.Node, state: State) -> None:
        axis, sizes = _parts(node, node.outputs, state)
        for other in node.inputs[1:]:
            state.pin(other, None, f"{label(node)} reads sizes")
        said = node.inputs[1] if len(node.inputs) > 1 else None
        if said is not None and state.array(said) is None:
            state.pin_all(node, f"{label(node)} computes its sizes")
            return
        _agree_in_parts(node, given(node), node.outputs, axis, sizes, state)

    def rewrite(self, node: ir.Node, state: State) -> None:
        axis, sizes = _parts(node, node.outputs, state)
        if None in sizes or not any((c := state.cut(out, axis)) is not None and c.gone.any() for out in node.outputs):
            return
        cuts = [state.cut(out, axis) for out in node.outputs]
        left = [int(size or 0) if cut is None else cut.left for cut, size in zip(cuts, sizes, strict=True)]
        if "split" in node.attributes:
            node.attributes["split"] = ir.AttrInt64s("split", left)
        elif len(node.inputs) > 1 and node.inputs[1] is not None:
            if left != sizes:
                write_entries(node, 1, dict(enumerate(left)), state)
        elif len(set(left)) > 1:
            node.attributes.pop("num_outputs", None)
            node.resize_inputs(2)
            node.replace_input_with(1, state.constant(f"{node.outputs[0].name}_sizes", np.array(left, np.int64)))


def _agree_in_parts(
    node: ir.Node,
    whole: ir.Value,
    parts: Sequence[ir.Value | None],
    axis: int,
    sizes: Sequence[int | None],
    state: State,
) -> None:
    name, start = label(node), 0
    for other in range(len(state.dims(whole))):
        if other != axis:
            for part in parts:
                state.tie(part, other, whole, other, f"{name} has an axis of dynamic size there")
    if None in sizes:
        for value in (whole, *parts):
            state.pin(value, [axis], f"{name} has an axis of dynamic size there")
        return
    total = state.dims(whole)[axis]
    for part, size in zip(parts, sizes, strict=True):
        assert part is not None
        index = np.full(total or 1, -1, np.int64)
        index[start : start + (size or 0)] = np.arange(size or 0)
        start += size or 0
        tie_places(part, axis, whole, axis, index, name, state)


def _parts(node: ir.Node, values: Sequence[ir.Value | None], state: State) -> tuple[int, list[int | None]]:
    """The axis that is split or joined, and the parts' sizes along it."""
    parts = [state.dims(value) for value in values if value is not None]
    axis = node.attributes.get_int("axis", 0)
    axis = axis + len(parts[0]) if axis < 0 else axis
    return axis, [dims[axis] for dims in parts]


def _joined(arrays: Sequence[Array], axis: int) -> Array:
    shapes = [list(array.shape) for array in arrays]
    common = [max(shape[other] for shape in shapes) for other in range(len(shapes[0]))]
    wide = [
        np.broadcast_to(array, [array.shape[o] if o == axis else size for o, size in enumerate(common)])
        for array in arrays
    ]
    return np.concatenate(wide, axis)
