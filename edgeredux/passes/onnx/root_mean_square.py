"""RMSNorm in the spelling that ONNX Runtime fuses when it loads a file."""

from __future__ import annotations

import onnx_ir as ir

from edgeredux.passes.onnx import files


class DivideByRoot(ir.passes.InPlacePass):
    """Exporters multiply by the reciprocal of the root, ONNX Runtime looks for a division by the root.

    Given   y = Mul(x, Reciprocal(Sqrt(Add(ReduceMean(Pow(x, 2)), eps)))); z = Mul(weight, y)
    Result  y = Div(x, Sqrt(Add(ReduceMean(Pow(x, 2)), eps)));             z = Mul(y, weight)
    """

    def __init__(self) -> None:
        super().__init__()
        self.norms = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for graph in list(files.graphs(model)):
            for node in [node for node in graph if node.op_type == "Mul" and node.domain == ""]:
                self._rewrite(graph, node)
        return ir.passes.PassResult(model, self.norms > 0)

    def _rewrite(self, graph: ir.Graph, product: ir.Node) -> None:
        for place in (0, 1):
            x, inverse = product.inputs[place], files.made_by(product.inputs[1 - place], "Reciprocal")
            root = None if inverse is None else files.made_by(inverse.inputs[0], "Sqrt")
            total = None if root is None else files.made_by(root.inputs[0], "Add")
            if x is None or root is None or total is None or not any(_mean_square(value, x) for value in total.inputs):
                continue
            division = ir.node("Div", [x, root.outputs[0]], name=product.name)
            old, new = product.outputs[0], division.outputs[0]
            new.name, new.type, new.shape = old.name, old.type, old.shape
            ir.convenience.replace_nodes_and_values(graph, product, [product], [division], [old], [new])
            for use in list(new.uses()):
                gain = use.node
                if gain.op_type == "Mul" and use.idx == 1 and files.constant(gain.inputs[0]) is not None:
                    weight = gain.inputs[0]
                    gain.replace_input_with(0, new)
                    gain.replace_input_with(1, weight)
            self.norms += 1
            return


def _mean_square(value: ir.Value | None, x: ir.Value) -> bool:
    mean = files.made_by(value, "ReduceMean")
    power = None if mean is None else files.made_by(mean.inputs[0], "Pow")
    exponent = None if power is None else files.constant(power.inputs[1])
    return power is not None and power.inputs[0] is x and exponent is not None and (exponent == 2).all().item()
