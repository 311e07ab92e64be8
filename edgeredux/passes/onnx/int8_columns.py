"""The scales of an int8 weight's columns, multiplied where ONNX Runtime does it at the least cost."""

from __future__ import annotations

import onnx_ir as ir

from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.weights import initializer

# What a runtime may take out of a graph as changing nothing: the next node then reads the product itself.
_MAY_VANISH = {"Identity", "Dropout", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand"}
_MAY_VANISH |= {"Slice", "Pad", "Mul", "Div", "Sub"}


class ScaleColumnsLast(ir.passes.InPlacePass):
    """Give the per-column scales of integer products the outputs' rank, for runs of few positions.

    Given   y[.., N] = Cast(MatMulInteger(x, w)) * (xs * ws[N])
    Result  y[.., N] = Cast(MatMulInteger(x, w)) * (xs * ws[1, 1, N])

    The same sums in any runtime. ONNX Runtime 1.32 fuses either form into one operator: with the first it makes the N
    products xs * ws one by one in every run (1.5 ns each, a third of a quarter of a 768x3072 layer at one position),
    with the second it sweeps once over all outputs. A product that a constant Add may follow stays as it is: ONNX
    Runtime would fuse the Add as a bias and scale that, too. So does one whose outputs have less than three dimensions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scaled = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for graph in list(files.graphs(model)):
            for node in list(graph):
                if node.op_type == "MatMulInteger" and node.domain == "":
                    self.scaled += _scale_last(graph, node)
        return ir.passes.PassResult(model, self.scaled > 0)


def _scale_last(graph: ir.Graph, product: ir.Node) -> bool:
    cast = _only_reader(product, "Cast")
    scaled = _only_reader(cast, "Mul") if cast is not None else None
    if cast is None or scaled is None:
        return False
    steps = next((v.producer() for v in scaled.inputs if v is not None and v is not cast.outputs[0]), None)
    if steps is None or steps.op_type != "Mul" or len(list(steps.outputs[0].uses())) != 1:
        return False
    shape = scaled.outputs[0].shape
    if shape is None or len(shape) < 3 or _bias_may_follow(scaled.outputs[0]):
        return False
    for index, value in enumerate(steps.inputs):
        scales = files.constant(value)
        if value is not None and scales is not None and scales.ndim == 1 and scales.size > 1:
            row = scales.reshape([1] * (len(shape) - 1) + [-1])
            steps.replace_input_with(index, initializer(graph, f"{value.name}_row", row))
            steps.outputs[0].shape = ir.Shape(row.shape)
            return True
    return False


def _only_reader(node: ir.Node, kind: str) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.op_type != kind:
        return None
    return uses[0].node if uses[0].node.graph is node.graph else None


def _bias_may_follow(value: ir.Value) -> bool:
    """Whether an Add of a constant reads the value, at once or behind what may vanish."""
    for node, index in value.uses():
        others = [other for place, other in enumerate(node.inputs) if place != index and other is not None]
        if node.op_type == "Add" and not any(_varies(other) for other in others):
            return True
        if node.op_type in _MAY_VANISH and any(_bias_may_follow(out) for out in node.outputs):
            return True
    return False


def _varies(value: ir.Value) -> bool:
    """Whether the value depends on what the graph is given: what does not, a runtime makes a constant."""
    node = value.producer()
    if node is None:
        return value.is_graph_input() or not value.is_initializer()
    return any(_varies(other) for other in node.inputs if other is not None)
