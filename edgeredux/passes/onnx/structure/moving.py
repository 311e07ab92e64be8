"""Transpose, and how positions go together that an operator puts elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.facts import Flags, Known
from edgeredux.passes.onnx.structure.rule import Rule, given, label
from edgeredux.passes.onnx.structure.state import State

Indices: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


class Transpose(Rule):
    """Axes in another order."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        known, order = state.known(given(node)), _order(node, state)
        return [Known(known.mask.transpose(order), known.values.transpose(order))]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        return [state.wanted(node.outputs[0]).transpose(np.argsort(_order(node, state)))]

    def agree(self, node: ir.Node, state: State) -> None:
        for axis, source in enumerate(_order(node, state)):
            state.tie(given(node), source, node.outputs[0], axis, f"{label(node)} moves a dynamic axis")


def tie_places(value: ir.Value, axis: int, out: ir.Value, other: int, index: Indices, name: str, state: State) -> None:
    """Positions of `value` and of `out` go together, where out[j] is value[index[j]]; -1 ties to nothing."""
    one, two = state.cut(value, axis), state.cut(out, other)
    inside = index >= 0
    size = state.dims(value)[axis] or 1
    gone = np.zeros(size, bool) if one is None else one.gone
    allowed = np.ones(len(index), bool)
    allowed[inside] = gone[index[inside]]
    causes = np.zeros(len(index), np.int32)
    if two is not None:
        causes[:] = state.cause(f"{name} takes a position that stays") if one is None else 0
        if one is not None:
            causes[inside] = one.cause[index[inside]]
        state.only(out, other, allowed, causes)
    if one is not None:
        stays = inside & (np.ones(len(index), bool) if two is None else two.kept)
        allowed_in = np.ones(size, bool)
        allowed_in[index[stays]] = False
        causes = np.zeros(size, np.int32)
        causes[index[stays]] = state.cause(f"{name} has a single position there") if two is None else two.cause[stays]
        state.only(value, axis, allowed_in, causes)


def _order(node: ir.Node, state: State) -> list[int]:
    rank = len(state.dims(given(node)))
    return list(node.attributes.get_ints("perm", range(rank - 1, -1, -1)))
