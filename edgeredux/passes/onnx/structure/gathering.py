"""Gather: positions of an axis by their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.facts import Flags, Known, any_along, widened
from edgeredux.passes.onnx.structure.moving import Indices, tie_places
from edgeredux.passes.onnx.structure.rule import Rule, given, label
from edgeredux.passes.onnx.structure.state import State


class Gather(Rule):
    """Constant indices move positions; others need the whole axis, whose constant columns stay constant."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        axis, index = self._read(node, state)
        known = state.known(given(node))
        between = len(state.dims(_indices(node)))
        if index is None:
            known = known.same_along([axis])
            shape = (*known.mask.shape[:axis], *[1] * between, *known.mask.shape[axis + 1 :])
            other = (*known.values.shape[:axis], *[1] * between, *known.values.shape[axis + 1 :])
            return [Known(known.mask.reshape(shape), known.values.reshape(other))]
        size = state.dims(given(node))[axis] or 1
        mask, values = (widened(array, axis, size).take(index, axis) for array in (known.mask, known.values))
        return [Known(mask, values)]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        axis, index = self._read(node, state)
        wanted, data = state.wanted(node.outputs[0]), state.dims(given(node))
        between = len(state.dims(_indices(node)))
        flags = any_along(wanted, range(axis, axis + between))
        flags = flags.reshape((*flags.shape[:axis], 1, *flags.shape[axis + between :]))
        size = data[axis]
        if index is None or size is None:
            return [flags, None]
        shape = list(flags.shape)
        shape[axis] = size
        found = np.zeros(shape, bool)
        wide = wanted if index.ndim else np.expand_dims(wanted, axis)
        for place, source in enumerate(index.reshape(-1)):
            target = [slice(None)] * found.ndim
            target[axis] = slice(int(source), int(source) + 1)
            found[tuple(target)] |= wide.take([min(place, wide.shape[axis] - 1)], axis)
        return [found, None]

    def agree(self, node: ir.Node, state: State) -> None:
        axis, index = self._read(node, state)
        value, out, name = given(node), node.outputs[0], label(node)
        between = len(state.dims(_indices(node)))
        for one in range(len(state.dims(value))):
            if one != axis:
                state.tie(value, one, out, one if one < axis else one - 1 + between, f"{name} has a dynamic axis there")
        if index is None:
            cause = f"{name} takes positions that are not constant"
            state.pin(value, [axis], cause)
            state.pin(node.inputs[1], None, cause)
            state.pin(out, range(axis, axis + between), cause)
        elif index.ndim == 0:
            size = state.dims(value)[axis]
            allowed = np.ones(size or 1, bool)
            allowed[index] = False
            state.only(value, axis, allowed, f"{name} takes them")
        else:
            tie_places(value, axis, out, axis, index, name, state)
            state.tie(node.inputs[1], 0, out, axis, name)

    def rewrite(self, node: ir.Node, state: State) -> None:
        axis, index = self._read(node, state)
        cut = state.cut(given(node), axis)
        if index is None or cut is None or not cut.gone.any():
            return
        # The array keeps its length here: the initializer is cut with all others.
        array = (np.cumsum(cut.kept) - 1)[index].clip(0)
        value = _indices(node)
        old = state.array(value)
        assert old is not None
        value.const_value = ir.tensor(np.asarray(array, old.dtype).reshape(old.shape), name=value.name)

    @staticmethod
    def _read(node: ir.Node, state: State) -> tuple[int, Indices | None]:
        """The axis, and indices of rank 0 or 1 that are constant, counted from the front."""
        rank = len(state.dims(given(node)))
        axis = node.attributes.get_int("axis", 0)
        axis = axis + rank if axis < 0 else axis
        size, array = state.dims(given(node))[axis], state.array(node.inputs[1])
        if array is None or array.ndim > 1 or size is None:
            return axis, None
        return axis, np.where(array < 0, array + size, array).astype(np.int64)


def _indices(node: ir.Node) -> ir.Value:
    value = node.inputs[1]
    assert value is not None
    return value
