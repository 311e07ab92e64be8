"""Slice and Pad: chosen positions of an axis, and padding between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.facts import Flags, Known, any_along, widened
from edgeredux.passes.onnx.structure.moving import Indices, tie_places
from edgeredux.passes.onnx.structure.rule import Rule, given, label
from edgeredux.passes.onnx.structure.shape_entries import write_entries
from edgeredux.passes.onnx.structure.state import State


class Picking(Rule):
    """Operators whose output holds, along some axes, chosen positions of the input (Slice, Pad)."""

    def places(self, node: ir.Node, state: State) -> dict[int, Indices | None] | None:
        """By axis, for each output position the input position, -1 for padding; None: not constant, or dynamic.

        Axes that are not named are copied. None instead of the mapping: not even the axes are constant.
        """
        raise NotImplementedError

    def fill(self, node: ir.Node, state: State) -> Known:
        """What padding holds, of rank 0."""
        return Known.nothing(0)

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        places = self.places(node, state)
        if places is None:
            return [None]
        known, fill = state.known(given(node)), self.fill(node, state)
        for axis, index in places.items():
            if index is None:
                known = known.same_along([axis])
                continue
            if (index >= 0).all() and max(known.mask.shape[axis], known.values.shape[axis]) == 1:
                continue
            size = state.dims(given(node))[axis] or 1
            mask, values = (
                widened(array, axis, size).take(np.maximum(index, 0), axis) for array in (known.mask, known.values)
            )
            outside = (index < 0).reshape([-1 if other == axis else 1 for other in range(mask.ndim)])
            known = Known(
                np.where(outside, fill.mask, mask), np.where(outside, fill.values.astype(values.dtype), values)
            )
        return [known]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        places = self.places(node, state)
        if places is None:
            return [None] * len(node.inputs)
        flags = state.wanted(node.outputs[0])
        for axis, index in places.items():
            size = state.dims(given(node))[axis]
            if index is None or size is None:
                flags = any_along(flags, [axis])
                continue
            wide = widened(flags, axis, len(index))
            shape = list(wide.shape)
            shape[axis] = size
            found = np.zeros(shape, bool)
            for place in np.flatnonzero(index >= 0):
                target = [slice(None)] * found.ndim
                target[axis] = slice(int(index[place]), int(index[place]) + 1)
                found[tuple(target)] |= wide.take([place], axis)
            flags = found
        return [flags, *[None] * (len(node.inputs) - 1)]

    def agree(self, node: ir.Node, state: State) -> None:
        places, value, out, name = self.places(node, state), given(node), node.outputs[0], label(node)
        if places is None:
            state.pin_all(node, f"{name} computes its axes")
            return
        for other in node.inputs[1:]:
            state.pin(other, None, f"{name} reads it as a whole")
        for axis in range(len(state.dims(value))):
            if axis not in places:
                state.tie(value, axis, out, axis, f"{name} has an axis of dynamic size there")
                continue
            index = places[axis]
            if index is None:
                state.pin(value, [axis], f"{name} takes positions that are not constant")
                state.pin(out, [axis], f"{name} takes positions that are not constant")
            else:
                tie_places(value, axis, out, axis, index, name, state)


class Slice(Picking):
    """Steps of 1; other steps keep their axis whole, but for turning it round."""

    def places(self, node: ir.Node, state: State) -> dict[int, Indices | None] | None:
        value = given(node)
        said = self._said(node, state)
        if said is None:
            return None
        found: dict[int, Indices | None] = {}
        for axis, start, end, step in said:
            size = state.dims(value)[axis]
            index = None
            if size is not None and start is not None and end is not None:
                index = np.arange(size, dtype=np.int64)[start:end:step]
                if step != 1 and (step != -1 or len(index) != size):
                    index = None
            found[axis] = index
        return found

    def _said(self, node: ir.Node, state: State) -> list[tuple[int, int | None, int | None, int]] | None:
        """Axis, start, end, step; None where axes or steps are not constant."""
        rank = len(state.dims(given(node)))
        if len(node.inputs) < 3:
            return None
        steps = _constants(node, 4, state) if len(node.inputs) > 4 and node.inputs[4] is not None else None
        axes = _constants(node, 3, state) if len(node.inputs) > 3 and node.inputs[3] is not None else None
        if (steps is None and len(node.inputs) > 4 and node.inputs[4] is not None) or (
            axes is None and len(node.inputs) > 3 and node.inputs[3] is not None
        ):
            return None
        starts, ends = _constants(node, 1, state), _constants(node, 2, state)
        count = len(starts or ends or axes or range(rank))
        axes = list(range(count)) if axes is None else axes
        return [
            (
                axis + rank if axis < 0 else axis,
                None if starts is None else starts[place],
                None if ends is None else ends[place],
                1 if steps is None else steps[place],
            )
            for place, axis in enumerate(axes)
        ]

    def rewrite(self, node: ir.Node, state: State) -> None:
        starts: dict[int, int] = {}
        ends: dict[int, int] = {}
        for place, (axis, start, end, step) in enumerate(self._said(node, state) or []):
            cut = state.cut(given(node), axis)
            if cut is None or not cut.gone.any() or step != 1 or start is None or end is None:
                continue
            first, last, _ = slice(start, end).indices(len(cut.gone))
            new_first, new_last = int(cut.kept[:first].sum()), int(cut.kept[:last].sum())
            now = slice(start, end).indices(cut.left)
            if now[0] != new_first:
                starts[place] = new_first
            if now[1] != new_last:
                ends[place] = new_last
        if starts:
            write_entries(node, 1, starts, state)
        if ends:
            write_entries(node, 2, ends, state)


class Pad(Picking):
    """Padding with a constant; padded positions may go as well."""

    def places(self, node: ir.Node, state: State) -> dict[int, Indices | None] | None:
        said = self._said(node, state)
        if said is None:
            return None
        found: dict[int, Indices | None] = {}
        for axis, (begin, end) in said.items():
            size = state.dims(given(node))[axis]
            if begin == 0 and end == 0:
                continue
            if size is None or begin < 0 or end < 0:
                found[axis] = None
            else:
                found[axis] = np.concatenate([np.full(begin, -1), np.arange(size), np.full(end, -1)]).astype(np.int64)
        return found

    def fill(self, node: ir.Node, state: State) -> Known:
        value = node.inputs[2] if len(node.inputs) > 2 else None
        if value is None:
            return Known.constant(np.zeros((), np.float32))
        array = state.array(value)
        return Known.nothing(0) if array is None else Known.constant(array.reshape(()))

    def _said(self, node: ir.Node, state: State) -> dict[int, tuple[int, int]] | None:
        if node.attributes.get_string("mode", "constant") != "constant" or len(node.inputs) < 2:
            return None
        pads = _constants(node, 1, state)
        rank = len(state.dims(given(node)))
        axes: list[int] | None = list(range(rank))
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            axes = _constants(node, 3, state)
        if pads is None or axes is None:
            return None
        half = len(pads) // 2
        return {(a + rank if a < 0 else a): (pads[i], pads[half + i]) for i, a in enumerate(axes)}

    def rewrite(self, node: ir.Node, state: State) -> None:
        said = self._said(node, state)
        wanted: dict[int, int] = {}
        for place, (axis, (begin, end)) in enumerate((said or {}).items()):
            cut = state.cut(node.outputs[0], axis)
            if said is None or cut is None or not cut.gone.any() or not (begin or end):
                continue
            first, last = int(cut.kept[:begin].sum()), int(cut.kept[len(cut.kept) - end :].sum()) if end else 0
            if first != begin:
                wanted[place] = first
            if last != end:
                wanted[len(said) + place] = last
        if wanted:
            write_entries(node, 1, wanted, state)


def _constants(node: ir.Node, index: int, state: State) -> list[int] | None:
    array = state.array(node.inputs[index])
    return None if array is None else [int(entry) for entry in array.reshape(-1)]
