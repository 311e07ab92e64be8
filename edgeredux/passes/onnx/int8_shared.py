"""One quantisation of an activation for all the products that read parts of it."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgeredux.passes.onnx import files

# What moves values and computes none: the same on bytes as on floats, at a quarter of the traffic.
_MOVES = {"Gather", "Slice", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"}


class ShareQuantisation(ir.passes.InPlacePass):
    """Quantise before the values are gathered, once.

    Given   q1 = DynamicQuantizeLinear(Gather(x, rows1)); q2 = DynamicQuantizeLinear(Gather(x, rows2))
    Result  q = DynamicQuantizeLinear(x); q1 = Gather(q, rows1); q2 = Gather(q, rows2)

    For every value that at least two quantisations start from; a single one stays where it quantises fewer values.
    The step is that of the whole activation, as it is in the dense model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for graph in list(files.graphs(model)):
            starts: dict[int, tuple[ir.Value, list[tuple[ir.Node, list[ir.Node]]]]] = {}
            for node in graph:
                if node.op_type == "DynamicQuantizeLinear" and node.domain == "" and node.inputs[0] is not None:
                    start, way = _way(graph, node.inputs[0])
                    starts.setdefault(id(start), (start, []))[1].append((node, way))
            for start, readers in starts.values():
                if len(readers) > 1 and any(way for _, way in readers):
                    _share(graph, start, readers)
                    self.shared += len(readers)
        if self.shared:
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, self.shared > 0)


def _way(graph: ir.Graph, value: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    """The value that moves lead here from, and these moves in order."""
    way: list[ir.Node] = []
    while True:
        node = value.producer()
        if node is None or node.graph is not graph or node.domain != "" or node.op_type not in _MOVES:
            break
        if node.inputs[0] is None or any(files.constant(other) is None for other in node.inputs[1:] if other):
            break
        way.insert(0, node)
        value = node.inputs[0]
    return value, way


def _share(graph: ir.Graph, start: ir.Value, readers: list[tuple[ir.Node, list[ir.Node]]]) -> None:
    quantise = ir.node("DynamicQuantizeLinear", [start], num_outputs=3, name=f"{start.name}_shared_quantisation")
    for value, what in zip(quantise.outputs, ("int8", "scale", "zero"), strict=True):
        value.name = f"{start.name}_shared_{what}"
    members = {id(node) for reader, way in readers for node in (*way, reader)}
    graph.insert_before(next(node for node in graph if id(node) in members), quantise)
    moved: dict[int, ir.Value] = {id(start): quantise.outputs[0]}
    for reader, way in readers:
        for node in way:
            old = node.outputs[0]
            if id(old) not in moved:
                assert node.inputs[0] is not None
                copy = ir.node(
                    node.op_type,
                    [moved[id(node.inputs[0])], *node.inputs[1:]],
                    dict(node.attributes),
                    name=f"{node.name}_int8",
                )
                copy.outputs[0].name = f"{old.name}_int8"
                copy.outputs[0].dtype = ir.DataType.UINT8
                copy.outputs[0].shape = old.shape
                graph.insert_before(node, copy)
                moved[id(old)] = copy.outputs[0]
        assert reader.inputs[0] is not None
        made = (moved[id(reader.inputs[0])], *quantise.outputs[1:])
        for old, new in zip(reader.outputs, made, strict=True):
            ir.convenience.replace_all_uses_with(old, new)
        graph.remove(reader, safe=True)
