"""A linear operator written band by band: what each band reads, a dense product, and the bands joined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx import channels
from edgeredux.passes.onnx.channels import Array
from edgeredux.passes.onnx.tile_bands import Band, Indices, block, contiguous
from edgeredux.passes.onnx.weights import initializer, stored


class Lowering:
    """Replaces linear operators of one graph; equal reads of one value are made once.

    Given   y = MatMul(x[.., K], w)                                w zero outside of each band's rows
    Result  y = Concat(MatMul(Gather(x, rows1), w1), MatMul(Gather(x, rows2), w2), ...)

    Rows that lie together are a Slice. Rows in aligned blocks are gathered block by block on the view [.., K / B, B]:
    one copy of B values instead of B copies. Convolutions of 1x1 read channels on axis 1. `spread_bias`: the Add of a
    bias behind a MatMul goes into the bands, where runtimes fuse it with an integer product.
    """

    def __init__(self, graph: ir.Graph, *, spread_bias: bool) -> None:
        self.graph = graph
        self.spread_bias = spread_bias
        self._read: dict[tuple[int, bytes], ir.Value] = {}
        self._views: dict[tuple[int, int], ir.Value] = {}

    def lower(self, node: ir.Node, bands: Sequence[Band]) -> None:
        """Put the bands in the node's place."""
        table, out, source = channels.rows(node), node.outputs[0], node.inputs[0]
        assert source is not None
        bias = channels.weight(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        axis = 1 if node.op_type == "Conv" else -1
        made: list[ir.Node] = []
        add = _bias_behind(node) if self.spread_bias and len(bands) > 1 else None
        parts: list[ir.Value] = []
        for band in bands:
            inputs: list[ir.Value | None] = [
                self._reading(source, band.columns, table.shape[1], axis, out, made),
                initializer(self.graph, f"{out.name}_band", stored(node, table[band.start : band.stop, band.columns])),
            ]
            if bias is not None:
                inputs.append(initializer(self.graph, f"{out.name}_bias", bias[band.start : band.stop]))
            made.append(ir.node(node.op_type, inputs, dict(node.attributes)))
            if add is not None:
                behind = initializer(self.graph, f"{out.name}_bias", add[1][band.start : band.stop])
                made.append(ir.node("Add", [made[-1].outputs[0], behind]))
            parts.append(made[-1].outputs[0])
        if len(parts) > 1:
            made.append(ir.node("Concat", parts, {"axis": _axis(out, axis)}))
        stem = str(node.name or out.name)
        for index, part in enumerate(made):
            if part.name is None:
                part.name = f"{stem}_tile{index}"
                part.outputs[0].name = f"{out.name}_tile{index}"
                part.outputs[0].type = out.type
        made[-1].outputs[0].shape = out.shape
        if add is not None:
            sum_of = add[0].outputs[0]
            ir.convenience.replace_all_uses_with(sum_of, out)
            self.graph.remove(add[0], safe=True)
        ir.convenience.replace_nodes_and_values(self.graph, node, [node], made, [out], [made[-1].outputs[0]])

    def _reading(
        self, source: ir.Value, columns: Indices, inputs: int, axis: int, out: ir.Value, made: list[ir.Node]
    ) -> ir.Value:
        if len(columns) == inputs:
            return source
        key = (id(source), columns.tobytes())
        if key not in self._read:
            self._read[key] = self._new_reading(source, columns, inputs, axis, out, made)
        return self._read[key]

    def _new_reading(
        self, source: ir.Value, columns: Indices, inputs: int, axis: int, out: ir.Value, made: list[ir.Node]
    ) -> ir.Value:
        def constant(what: str, array: Indices) -> ir.Value:
            return initializer(self.graph, f"{out.name}_{what}", array)

        if contiguous(columns):
            start, stop = constant("start", columns[:1]), constant("stop", columns[-1:] + 1)
            made.append(ir.node("Slice", [source, start, stop, constant("axis", np.array([axis]))]))
            return made[-1].outputs[0]
        width = block(columns, inputs)
        rank = None if source.shape is None else len(source.shape)
        if axis == 1 or width == 1 or rank is None:
            made.append(ir.node("Gather", [source, constant("rows", columns)], {"axis": _axis(source, axis)}))
            return made[-1].outputs[0]
        view = self._views.get((id(source), width))
        if view is None:
            shape = np.array([0] * (rank - 1) + [inputs // width, width])
            made.append(ir.node("Reshape", [source, constant("view", shape)]))
            view = self._views[id(source), width] = made[-1].outputs[0]
        made.append(ir.node("Gather", [view, constant("blocks", columns[::width] // width)], {"axis": rank - 1}))
        shape = np.array([0] * (rank - 1) + [len(columns)])
        made.append(ir.node("Reshape", [made[-1].outputs[0], constant("flat", shape)]))
        return made[-1].outputs[0]


def _bias_behind(node: ir.Node) -> tuple[ir.Node, Array] | None:
    """The Add that alone reads this MatMul, in the same graph, and the bias that it adds."""
    out = node.outputs[0]
    uses = list(out.uses())
    if node.op_type != "MatMul" or len(uses) != 1 or out.is_graph_output():
        return None
    add = uses[0].node
    if add.op_type != "Add" or add.domain != "" or add.graph is not node.graph or add.outputs[0].is_graph_output():
        return None
    bias = channels.weight(add, 1 - uses[0].idx)
    return (add, bias) if bias is not None and bias.shape == channels.rows(node).shape[:1] else None


def _axis(value: ir.Value, axis: int) -> int:
    """The axis counted from the front where the rank is known: not every runtime takes -1."""
    return axis if axis >= 0 or value.shape is None else len(value.shape) - 1
