"""Conv and ConvTranspose, with any number of groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.bias import add_bias, can_hold
from edgeredux.passes.onnx.structure.factors import agree_by_factors
from edgeredux.passes.onnx.structure.facts import Array, Flags, Known, flat_any
from edgeredux.passes.onnx.structure.rule import Rule, given, label
from edgeredux.passes.onnx.structure.state import State


class Convolution(Rule):
    """Input channels are groups x positions, output channels groups x others; whole groups go, or positions in all.

    Padding is zero, so a constant channel other than zero is no constant at the border: it goes only where there is no
    padding, and never through a ConvTranspose.
    """

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        table = self._table(node, state)
        if table is None:
            return [None]
        groups, inner, outer, _ = table.shape
        constant, values = _channels(state.known(given(node)), groups * inner)
        constant, values = constant.reshape(groups, inner), values.reshape(groups, inner)
        if not _plain(node):
            constant = constant & (values == 0)
        used = (table != 0).any(axis=-1)
        unknown = (used & ~constant[:, :, None]).any(axis=1)
        weights = table.sum(axis=-1, dtype=np.float64)
        made = np.einsum("gi,gio->go", np.where(constant, values, 0).astype(np.float64), weights).reshape(-1)
        mask = ~unknown.reshape(-1)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            own = state.known(bias)
            mask = mask & own.mask
            made = made + np.where(own.mask, own.values, 0)
        shape = (1, groups * outer) + (1,) * (len(state.dims(node.outputs[0])) - 2)
        return [Known(mask.reshape(shape), made.astype(table.dtype).reshape(shape))]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        table = self._table(node, state)
        if table is None:
            return [None] * len(node.inputs)
        groups, _, outer, _ = table.shape
        wanted = np.broadcast_to(flat_any(state.wanted(node.outputs[0]), 1), (groups * outer,))
        read = ((table != 0).any(axis=-1) & wanted.reshape(groups, 1, outer)).any(axis=2).reshape(-1)
        found: list[Flags | None] = [read.reshape((1, -1) + (1,) * (len(state.dims(given(node))) - 2)), None]
        return [*found, wanted][: len(node.inputs)]

    def agree(self, node: ir.Node, state: State) -> None:
        table, value, out, name = self._table(node, state), given(node), node.outputs[0], label(node)
        if table is None:
            state.pin_all(node, f"{name} has a weight that is computed, or channels that are not constant in number")
            return
        for one in (value, out):
            state.pin(one, [0, *range(2, len(state.dims(one)))], f"{name} needs all positions")
        groups, inner, outer, _ = table.shape
        sizes = [groups, inner, outer]
        weight = node.inputs[1]
        assert weight is not None
        state.pin(weight, range(2, len(state.dims(weight))), f"{name} needs all taps")
        many = (0,) if groups > 1 else ()
        ins, outs = (1,) if inner > 1 else (), (2,) if outer > 1 else ()
        first, second = (outs, ins) if node.op_type == "Conv" else (ins, outs)
        sides = [(value, 1, many + ins), (out, 1, many + outs), (weight, 0, many + first), (weight, 1, second)]
        if len(node.inputs) > 2 and (bias := node.inputs[2]) is not None:
            sides.append((bias, 0, many + outs))
        agree_by_factors(sides, sizes, f"{name} has groups that have to stay whole", state)
        cut = state.cut(value, 1)
        if cut is None or not cut.gone.any():
            return
        stays = ~state.gone(out, 1) if state.cut(out, 1) else np.ones(groups * outer, bool)
        read = ((table != 0).any(axis=-1) & stays.reshape(groups, 1, outer)).any(axis=2).reshape(-1)
        constant, values = _channels(state.known(value), groups * inner)
        movable = constant & ((values == 0) | (_plain(node) and can_hold(node, state)))
        padded = self.cause_of(node, constant & ~movable & read)
        state.only(value, 1, ~read | movable, f"{name} {padded}")

    @staticmethod
    def cause_of(node: ir.Node, constant: Flags) -> str:
        """Why channels that it reads have to stay."""
        return "pads with zeros, which a constant input is not" if constant.any() else "needs them"

    def rewrite(self, node: ir.Node, state: State) -> None:
        table, cut = self._table(node, state), state.cut(given(node), 1)
        if table is None or cut is None or not (cut.gone.any() or state.is_cut(node.outputs[0])):
            return
        groups, inner, _, _ = table.shape
        if cut.gone.any():
            constant, values = _channels(state.known(given(node)), groups * inner)
            moved = np.where(constant & cut.gone, values, 0).reshape(groups, inner).astype(np.float64)
            add_bias(node, np.einsum("gi,gio->go", moved, table.sum(axis=-1, dtype=np.float64)).reshape(-1), state)
        if groups > 1:
            left = int(cut.kept.reshape(groups, inner).any(axis=1).sum())
            if left != groups:
                node.attributes["group"] = ir.AttrInt64("group", left)

    def _table(self, node: ir.Node, state: State) -> Array | None:
        """The weight as [groups, inputs of a group, outputs of a group, taps]."""
        weight = node.inputs[1]
        assert weight is not None
        known = state.known(weight)
        channels, made = state.dims(given(node))[1], state.dims(node.outputs[0])[1]
        if not known.everywhere or channels is None or made is None or None in state.dims(weight):
            return None
        array = np.broadcast_to(known.values, [int(size or 0) for size in state.dims(weight)])
        groups = node.attributes.get_int("group", 1)
        inner, outer = channels // groups, made // groups
        if node.op_type == "Conv":
            return array.reshape(groups, outer, inner, -1).swapaxes(1, 2)
        return array.reshape(groups, inner, outer, -1)


def _channels(known: Known, channels: int) -> tuple[Flags, Array]:
    """Which channels hold one known value everywhere, and it: [channels] each."""
    same = known.same_along([axis for axis in range(known.mask.ndim) if axis != 1])
    return np.broadcast_to(same.mask.reshape(-1), (channels,)), np.broadcast_to(same.values.reshape(-1), (channels,))


def _plain(node: ir.Node) -> bool:
    """Whether a constant channel stays constant: nothing is padded."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    unpadded = auto == "VALID" or (auto == "NOTSET" and not any(node.attributes.get_ints("pads", [0])))
    return node.op_type == "Conv" and unpadded
