"""MatMul and Gemm: products that sum over an axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.bias import add_bias, can_hold
from edgeredux.passes.onnx.structure.facts import (
    MOST_ELEMENTS,
    Array,
    Flags,
    Known,
    aligned,
    any_along,
    needed_by,
    widened,
)
from edgeredux.passes.onnx.structure.mixing import mixed
from edgeredux.passes.onnx.structure.rule import Rule, label
from edgeredux.passes.onnx.structure.state import State


class Product(Rule):
    """MatMul.

    An output column is known where each of its terms is: a zero weight, or both factors known. A term may go when it is
    zero for every output that stays, or when the input is a constant: that goes into the bias.
    """

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        one, two = _factors(node)
        if min(len(state.dims(one)), len(state.dims(two))) < 2:
            return [None]
        return [product(state.known(one), state.known(two), rows_sum_to_one=_is_softmax(one))]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        one, two = _factors(node)
        if min(len(state.dims(one)), len(state.dims(two))) < 2:
            return [None, None]
        wanted = state.wanted(node.outputs[0])
        return [
            needed_by(_read(wanted, state.known(two)), state.dims(one)),
            needed_by(_turned(_read(_turned(wanted), _turned_known(state.known(one)))), state.dims(two)),
        ]

    def agree(self, node: ir.Node, state: State) -> None:
        (one, two), out, name = _factors(node), node.outputs[0], label(node)
        ranks = len(state.dims(one)), len(state.dims(two)), len(state.dims(out))
        if min(ranks) < 2:
            state.pin_all(node, f"{name} has a vector as an input")
            return
        for value, rank in zip((one, two), ranks, strict=False):
            for axis, size in enumerate(state.dims(value)[:-2]):
                if size is None or size > 1:
                    state.tie(value, axis, out, ranks[2] - rank + axis, f"{name} has an axis of dynamic size there")
        state.tie(one, ranks[0] - 2, out, ranks[2] - 2, f"{name} has dynamic rows")
        state.tie(two, ranks[1] - 1, out, ranks[2] - 1, f"{name} has dynamic columns")
        state.tie(one, ranks[0] - 1, two, ranks[1] - 2, f"{name} sums over a dynamic axis")
        cut = state.cut(one, ranks[0] - 1)
        if cut is not None and cut.gone.any():
            state.only(one, ranks[0] - 1, _removable(one, two, out, state), f"{name} needs them")

    def rewrite(self, node: ir.Node, state: State) -> None:
        one, two = _factors(node)
        gone = state.gone(one, len(state.dims(one)) - 1) if state.cut(one, len(state.dims(one)) - 1) else None
        table = state.array(two)
        if gone is not None and gone.any() and table is not None and table.ndim == 2:
            add_bias(node, _moved(state.known(one), gone, table), state)


class Gemm(Rule):
    """Gemm without transA: as MatMul, its bias in the third input."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        if not _plain(node):
            return [None]
        one, two = _factors(node)
        made = product(state.known(one), _table(node, state.known(two)), rows_sum_to_one=False)
        alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            return [Known(made.mask, made.values * alpha)]
        own = state.known(bias)
        mask, values = aligned(own.mask, 2), aligned(own.values, 2)
        return [
            Known(made.mask & mask, (made.values * alpha + np.where(mask, values, 0) * beta).astype(own.values.dtype))
        ]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        if not _plain(node):
            return [None] * len(node.inputs)
        one, two = _factors(node)
        wanted = state.wanted(node.outputs[0])
        table = _turned(_read(_turned(wanted), _turned_known(state.known(one))))
        found: list[Flags | None] = [
            needed_by(_read(wanted, _table(node, state.known(two))), state.dims(one)),
            needed_by(_turned(table) if _transposed(node) else table, state.dims(two)),
        ]
        if len(node.inputs) > 2:
            bias = node.inputs[2]
            found.append(None if bias is None else needed_by(wanted, state.dims(bias)))
        return found

    def agree(self, node: ir.Node, state: State) -> None:
        (one, two), out, name = _factors(node), node.outputs[0], label(node)
        if not _plain(node):
            state.pin_all(node, f"{name} has a transposed input")
            return
        inner, outer = (1, 0) if _transposed(node) else (0, 1)
        state.tie(one, 0, out, 0, f"{name} has dynamic rows")
        state.tie(two, outer, out, 1, f"{name} has dynamic columns")
        state.tie(one, 1, two, inner, f"{name} sums over a dynamic axis")
        if len(node.inputs) > 2 and (bias := node.inputs[2]) is not None:
            lead = 2 - len(state.dims(bias))
            for axis, size in enumerate(state.dims(bias)):
                if size != 1:
                    state.tie(bias, axis, out, lead + axis, f"{name} has a bias of dynamic size")
        cut = state.cut(one, 1)
        if cut is not None and cut.gone.any():
            table = _table(node, state.known(two))
            scaled = node.attributes.get_float("alpha", 1.0) != 1 or node.attributes.get_float("beta", 1.0) != 1
            allowed = _unread(table, state.gone(out, 1))
            if not scaled and table.everywhere and can_hold(node, state):
                allowed = allowed | _constant(state.known(one), len(cut.gone))
            state.only(one, 1, allowed, f"{name} needs them")

    def rewrite(self, node: ir.Node, state: State) -> None:
        one, two = _factors(node)
        table = state.array(two)
        if state.cut(one, 1) is not None and (gone := state.gone(one, 1)).any() and table is not None:
            add_bias(node, _moved(state.known(one), gone, table.T if _transposed(node) else table), state)


def product(one: Known, two: Known, *, rows_sum_to_one: bool) -> Known:
    """What is known of one @ two. `rows_sum_to_one`: rows of `one` do, whatever they are, as those of a Softmax."""
    if not one.somewhere and not two.somewhere:
        return Known.nothing(max(one.mask.ndim, two.mask.ndim))
    if rows_sum_to_one and not one.somewhere and max(two.mask.shape[-2], two.values.shape[-2]) == 1:
        return two
    inner = max(one.mask.shape[-1], one.values.shape[-1], two.mask.shape[-2], two.values.shape[-2])
    zeros = two.zeros()
    if not one.somewhere:  # a column of zeros, whatever comes
        mask = np.asarray(zeros.all(axis=-2, keepdims=True))
        return Known(
            aligned(mask, max(mask.ndim, one.mask.ndim)),
            np.zeros((1,) * max(mask.ndim, one.mask.ndim), two.values.dtype),
        )
    first, second = widened(one.mask, -1, inner), widened(two.mask, -2, inner)
    own = widened(one.zeros(), -1, inner)
    unknown = np.matmul((~first).astype(np.float32), widened(~zeros, -2, inner).astype(np.float32))
    if not second.all():
        unknown = unknown + np.matmul((first & ~own).astype(np.float32), (~second).astype(np.float32))
    if unknown.size > MOST_ELEMENTS:
        return Known.nothing(unknown.ndim)
    used = np.flatnonzero((first & ~own).any(axis=tuple(range(first.ndim - 1))))
    left = np.where(first, widened(one.values, -1, inner), 0)[..., used].astype(np.float64)
    right = np.where(second, widened(two.values, -2, inner), 0)[..., used, :].astype(np.float64)
    return Known(unknown == 0, np.matmul(left, right).astype(two.values.dtype))


def _factors(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    one, two = node.inputs[0], node.inputs[1]
    assert one is not None
    assert two is not None
    return one, two


def _is_softmax(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.op_type != "Softmax" or node.domain != "" or value.shape is None:
        return False
    return mixed(node, len(value.shape)) == [len(value.shape) - 1]


def _turned(flags: Flags) -> Flags:
    return np.swapaxes(flags, -1, -2)


def _turned_known(known: Known) -> Known:
    return Known(np.swapaxes(known.mask, -1, -2), np.swapaxes(known.values, -1, -2))


def _read(wanted: Flags, table: Known) -> Flags:
    """Elements of x that the wanted elements of x @ table read."""
    if not table.somewhere:
        return any_along(wanted, [wanted.ndim - 1])
    live = _turned(~table.zeros())
    columns = max(wanted.shape[-1], live.shape[-2])
    found: Flags = (
        np.matmul(widened(wanted, -1, columns).astype(np.float32), widened(live, -2, columns).astype(np.float32)) > 0
    )
    return found


def _removable(one: ir.Value, two: ir.Value, out: ir.Value, state: State) -> Flags:
    """Which terms of the sum may go: zero in every output that stays, or constants that a bias can hold."""
    left, right = state.known(one), state.known(two)
    size = state.dims(one)[-1]
    assert size is not None
    columns, rows = len(state.dims(out)) - 1, len(state.dims(out)) - 2
    if right.everywhere and right.values.ndim == 2:
        gone = state.gone(out, columns) if state.cut(out, columns) else np.zeros(right.values.shape[1], bool)
        return _unread(right, gone) | _constant(left, size)
    if left.everywhere and left.values.ndim == 2:
        gone = state.gone(out, rows) if state.cut(out, rows) else np.zeros(left.values.shape[0], bool)
        return _unread(_turned_known(left), gone)
    zero = widened(left.zeros(), -1, size).all(axis=tuple(range(left.mask.ndim - 1)))
    other = widened(right.zeros(), -2, size).all(axis=(*range(right.mask.ndim - 2), right.mask.ndim - 1))
    return np.asarray(zero | other)


def _unread(table: Known, gone: Flags) -> Flags:
    """Rows of a table that are zero in all columns but those that go."""
    zeros = np.broadcast_to(table.zeros(), np.broadcast_shapes(table.mask.shape, table.values.shape))
    if zeros.shape[-1] == len(gone):
        zeros = zeros[:, ~gone]
    return np.asarray(zeros.all(axis=1))


def _constant(known: Known, size: int) -> Flags:
    """Which positions of the last axis hold one known value everywhere."""
    same = known.same_along(range(known.mask.ndim - 1))
    return np.broadcast_to(same.mask.reshape(-1), (size,))


def _moved(known: Known, gone: Flags, table: Array) -> Array:
    """What the positions that go added to each output: [columns]."""
    same = known.same_along(range(known.mask.ndim - 1))
    size = len(gone)
    values = np.broadcast_to(np.where(same.mask, same.values, 0).reshape(-1), (size,))
    used = np.flatnonzero(gone & (values != 0))
    found: Array = values[used].astype(np.float64) @ table[used].astype(np.float64)
    return found


def _plain(node: ir.Node) -> bool:
    return node.attributes.get_int("transA", 0) == 0


def _transposed(node: ir.Node) -> bool:
    return node.attributes.get_int("transB", 0) != 0


def _table(node: ir.Node, known: Known) -> Known:
    return _turned_known(known) if _transposed(node) else known
