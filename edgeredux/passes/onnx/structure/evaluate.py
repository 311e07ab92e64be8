"""One operator computed on constants by the runtime itself, so that a folded constant is what the graph would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as failures

from edgeredux.passes.onnx.structure.facts import Array

# What ONNX Runtime raises for an operator, opset or type that it has no CPU kernel for.
_REFUSALS = (failures.NotImplemented, failures.Fail, failures.InvalidArgument, failures.InvalidGraph)


def evaluate(node: ir.Node, arrays: Sequence[Array | None]) -> Array | None:
    """The first output of an operator on these inputs; None where ONNX Runtime cannot compute it on a CPU."""
    graph = node.graph
    opsets = graph.opset_imports if graph is not None else {}
    initializers: list[ir.Value] = []
    inputs: list[ir.Value | None] = []
    for index, array in enumerate(arrays):
        if array is None:
            inputs.append(None)
            continue
        made = ir.val(f"i{index}", const_value=ir.tensor(np.ascontiguousarray(array), name=f"i{index}"))
        initializers.append(made)
        inputs.append(made)
    copy = ir.node(node.op_type, inputs, dict(node.attributes))
    copy.outputs[0].name = "y"
    copy.outputs[0].type = node.outputs[0].type
    made_graph = ir.Graph(
        [],
        [copy.outputs[0]],
        nodes=[copy],
        initializers=initializers,
        opset_imports={"": opsets.get("", 20)},
        name="one",
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    content = ir.to_proto(ir.Model(made_graph, ir_version=10)).SerializeToString()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        found: Array = session.run(None, {})[0]
    except _REFUSALS:
        return None
    return found
