"""Tensors that say a shape: which entries are constants, and writing others into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from edgeredux.passes.onnx.structure.state import State


def entries(value: ir.Value | None, state: State) -> list[int | None] | None:
    """By entry its constant, or None where it is computed; None where not even the number of entries is known.

    Exporters write a shape of dynamic sizes as Concat(batch, sequence, [12], [64]).
    """
    if value is None:
        return None
    array = state.array(value)
    if array is not None:
        return [int(size) for size in array.reshape(-1)]
    node = value.producer()
    if node is None or node.op_type != "Concat" or node.domain != "" or value.is_graph_output():
        return None if value.shape is None or len(value.shape) != 1 else _computed(value)
    found: list[int | None] = []
    for piece in node.inputs:
        part = entries(piece, state) if piece is not None and state.array(piece) is not None else None
        if part is None and piece is not None:
            part = _computed(piece)
        if part is None:
            return None
        found += part
    return found


def _computed(value: ir.Value) -> list[int | None] | None:
    if value.shape is None or len(value.shape) != 1 or not isinstance(value.shape[0], int):
        return None
    return [None] * value.shape[0]


def write_entries(node: ir.Node, index: int, wanted: Mapping[int, int], state: State) -> None:
    """Give a node a shape of its own with these entries; equal ones are made once. All of them are constants now."""
    value = node.inputs[index]
    assert value is not None
    key = (id(value), tuple(sorted(wanted.items())))
    made = state.written.get(key)
    if made is None:
        made = state.written[key] = _write(value, wanted, state)
    node.replace_input_with(index, made)


def _write(value: ir.Value, wanted: Mapping[int, int], state: State) -> ir.Value:
    array = state.array(value)
    if array is not None:
        return state.constant(f"{value.name}_cut", _changed(array, wanted))
    concat = value.producer()
    assert concat is not None
    pieces: list[ir.Value | None] = []
    start = 0
    for piece in concat.inputs:
        assert piece is not None
        part = state.array(piece)
        size = state.dims(piece)[0]
        assert size is not None
        inside = {place - start: entry for place, entry in wanted.items() if start <= place < start + size}
        start += size
        if inside:
            assert part is not None
            piece = state.constant(f"{piece.name}_cut", _changed(part, inside))
        pieces.append(piece)
    copy = ir.node("Concat", pieces, dict(concat.attributes), name=f"{concat.name}_cut")
    copy.outputs[0].name = f"{value.name}_cut"
    copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
    state.graph.insert_after(concat, copy)
    return copy.outputs[0]


def _changed(
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], wanted: Mapping[int, int]
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    changed = array.copy()
    for place, entry in wanted.items():
        changed.reshape(-1)[place] = np.asarray(entry, array.dtype)
    return changed
