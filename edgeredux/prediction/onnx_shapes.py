"""The shapes of an ONNX graph's tensors: ONNX's own inference and, where it stops short of a product, one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeredux.errors import ArtifactError, one_line

PRODUCTS = {
    "MatMul",
    "MatMulInteger",
    "FusedMatMul",
    "QLinearMatMul",
    "Gemm",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QGemm",
}
CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger", "ConvTranspose"}
ATTENTION = {"MultiHeadAttention", "Attention", "GroupQueryAttention"}


def inferred(model: Any, path: Path, run: bool) -> Any:
    """The ModelProto with shapes: those of ONNX's inference or, where that stops short of a product, those of a run."""
    import onnx

    for node in model.graph.node:
        if node.domain == "com.microsoft" and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = ""  # the same operators, from before the standard had 16 bits
    try:
        known = onnx.shape_inference.infer_shapes(model, data_prop=True)
        if run and _unknown(known) and all(fixed(given) for given in known.graph.input):
            return _executed(known, path)
    except Exception as problem:  # the C++ checker and ONNX Runtime raise kinds of their own
        raise ArtifactError(one_line(f"{path.name}: shapes cannot be inferred: {problem}")) from problem
    return known


def fixed(value: Any) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)


def _unknown(model: Any) -> bool:
    """Whether a product or an operator of ONNX Runtime's own has an output whose shape was not inferred."""
    told = {item.name for item in (*model.graph.value_info, *model.graph.output) if fixed(item)}
    costly = PRODUCTS | CONVOLUTIONS | ATTENTION
    return any(
        name and name not in told
        for node in model.graph.node
        if node.op_type in costly or node.domain == "com.microsoft"
        for name in node.output[:1]
    )


def _executed(model: Any, path: Path) -> Any:
    """The model with the shapes that its tensors have when it runs once on ones."""
    import numpy as np
    import onnx
    import onnxruntime as ort

    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    onnx.load_external_data_for_model(whole, str(path.parent))
    said = {item.name for item in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in said]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    wanted = ort.SessionOptions()
    wanted.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted.log_severity_level = 4
    session = ort.InferenceSession(whole.SerializeToString(), wanted, providers=["CPUExecutionProvider"])
    feed = {}
    for given in model.graph.input:
        kind = given.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        feed[given.name] = np.ones(shape, dtype=onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    outputs = [item.name for item in session.get_outputs()]
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.value_info[:]
    for name, value in zip(outputs, session.run(outputs, feed), strict=True):
        if name not in said:
            found.graph.value_info.append(onnx.helper.make_tensor_value_info(name, 1, list(value.shape)))
    return found
