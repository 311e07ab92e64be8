"""Channels between linear operators put in the order that makes what the readers read slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx import channels, files
from edgeredux.passes.onnx.channels import Array, Region
from edgeredux.passes.onnx.tile_bands import Flags, Groups, Indices
from edgeredux.passes.onnx.weights import give, stored

# The cheapest grouping of a matrix of non-zeros [outputs, inputs], and its cost.
Chooser = Callable[[Flags], tuple[Groups, float]]
_MOST = 2  # index sets that can all be made contiguous, whatever they are


class OrderChannels(ir.passes.InPlacePass):
    """Permute the channels of a linear operator and of all that read them, where that makes the layers cheaper.

    Given   h = Gelu(MatMul(x, w) + b); y = MatMul(h, v)       the two halves of v's outputs read some rows each
    Result  the same with columns of w, entries of b and rows of v permuted: only the first half, both, only the second

    With two index sets in the order first alone, both, second alone, neither, each is one slice. Within these parts
    channels lie by the band of w that makes them, turned round in every second part, so that w has few bands. Exact:
    every channel is computed as before, elsewhere.
    """

    def __init__(self, choose: Chooser) -> None:
        super().__init__()
        self.choose = choose
        self.ordered: dict[str, int] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for graph in list(files.graphs(model)):
            for node in list(graph):
                if node.op_type in ("MatMul", "Gemm") and channels.is_linear(node):
                    self._order(node)
        return ir.passes.PassResult(model, bool(self.ordered))

    def _order(self, node: ir.Node) -> None:
        found = channels.region(node)
        if found is None:
            return
        tables = [channels.rows(reader) != 0 for reader in found.readers]
        if all(table.all() for table in tables):
            return
        made = channels.rows(node) != 0
        chosen = [self.choose(table) for table in tables]
        maker, cost = self.choose(made)
        order = _order(maker, [groups for groups, _ in chosen])
        if order is None:
            return
        before = cost + sum(cost for _, cost in chosen)
        after = self.choose(made[order])[1] + sum(self.choose(table[:, order])[1] for table in tables)
        if after < before:
            _permute(found, order)
            self.ordered[str(node.name)] = len(order)


def _order(maker: Groups, readers: Sequence[Groups]) -> Indices | None:
    """The order of the channels; None where more than two index sets compete, or nothing would move."""
    supports = np.unique(np.concatenate([groups.supports for groups in readers]), axis=0)
    supports = supports[~supports.all(axis=1)]
    if not 0 < len(supports) <= _MOST:
        return None
    first, second = supports[0], supports[-1]
    part = np.select([first & ~second, first & second, second & ~first], [0, 1, 2], 3)
    band = np.where(part % 2 == 0, maker.labels, -maker.labels)
    order = np.lexsort((np.arange(len(part)), band, part)).astype(np.int64)
    return None if (order == np.arange(len(order))).all() else order


def _permute(found: Region, order: Indices) -> None:
    maker = found.producer
    give(maker, 1, stored(maker, channels.rows(maker)[order]), "ordered")
    if len(maker.inputs) > 2 and (bias := channels.weight(maker, 2)) is not None:
        give(maker, 2, bias[order], "ordered")
    for node, index in found.constants:
        array = files.constant(node.inputs[index])
        assert array is not None
        give(node, index, _taken(array, order), "ordered")
    for reader in found.readers:
        give(reader, 1, stored(reader, channels.rows(reader)[:, order]), "ordered")


def _taken(array: np.ndarray[Any, np.dtype[np.generic]], order: Indices) -> Array:
    place = next(axis for axis, size in enumerate(array.shape) if size == len(order))
    return np.take(array, order, axis=place)
