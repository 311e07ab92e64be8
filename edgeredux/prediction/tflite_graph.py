"""The operators of a TFLite file, whose shapes it states itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgeredux.errors import ArtifactError, EnvironmentProblem, one_line
from edgeredux.prediction.operators import Kind, Operator, contraction, convolution_kind

_FREE = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "SHAPE", "CAST", "DELEGATE"}
_CLAMPS = {"RELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "PRELU"}
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("LOGISTIC", "TANH", "GELU", "HARD_SWISH", "EXP", "ELU", "RSQRT", "SQRT", "LOG"), "activation"),
    **dict.fromkeys(("SOFTMAX", "LOG_SOFTMAX"), "softmax"),
    **dict.fromkeys(("L2_NORMALIZATION", "LOCAL_RESPONSE_NORMALIZATION"), "norm"),
    **dict.fromkeys(
        ("MAX_POOL_2D", "AVERAGE_POOL_2D", "MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "ARG_MAX", "TOPK_V2"), "reduce"
    ),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), "resize"),
    **dict.fromkeys(
        (
            "TRANSPOSE",
            "CONCATENATION",
            "SLICE",
            "STRIDED_SLICE",
            "SPLIT",
            "GATHER",
            "PAD",
            "PADV2",
            "MIRROR_PAD",
            "PACK",
            "UNPACK",
            "TILE",
            "DEPTH_TO_SPACE",
            "SPACE_TO_DEPTH",
            "EMBEDDING_LOOKUP",
            "SELECT_V2",
            "BROADCAST_TO",
        ),
        "move",
    ),
}
_INT8, _INT16 = 9, 7


def operators(path: Path) -> list[Operator]:
    """What one run of the file does. Raises EnvironmentProblem without LiteRT, ArtifactError on no TFLite file."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        raise EnvironmentProblem(
            "LiteRT, which reads TFLite files, is not installed; install it with: pip install 'edgeredux[tflite]'"
        ) from None
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise ArtifactError(f"{path.name}: no TFLite file")
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
    except Exception as problem:  # flatbuffers raises whatever it stumbles over in a damaged file
        raise ArtifactError(one_line(f"{path.name}: no TFLite file: {problem!r}")) from problem
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    graph = model.subgraphs[0]
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    constants = {
        i
        for i, t in enumerate(graph.tensors)
        if model.buffers[t.buffer].data is not None and len(model.buffers[t.buffer].data)
    }
    found: list[Operator] = []
    for item in graph.operators:
        kind = names[codes[item.opcodeIndex]]
        inputs = [int(i) for i in item.inputs if i >= 0]
        if all(i in constants for i in inputs):
            constants.update(int(i) for i in item.outputs)
            continue
        found += _record(kind, item, graph.tensors, inputs, constants, path)
    return found


def _record(kind: str, item: Any, tensors: Any, inputs: list[int], constants: set[int], path: Path) -> list[Operator]:
    def shape(index: int) -> tuple[int, ...]:
        said = tensors[index].shape
        return tuple(int(size) for size in said) if said is not None else ()

    live = [i for i in inputs if i not in constants]
    made = shape(int(item.outputs[0]))
    reads, writes = float(sum(math.prod(shape(i)) for i in live)), float(math.prod(made))
    if kind in _FREE:
        return []
    if kind in ("WHILE", "IF", "CALL_ONCE"):
        raise ArtifactError(f"{path.name}: {kind}: how much it computes depends on values")
    bits = {_INT8: 8, _INT16: 16}.get(tensors[inputs[0]].type, 0)
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        weight, given, options = shape(inputs[1]), shape(inputs[0]), item.builtinOptions
        strided = max(options.strideH, options.strideW) > 1
        places, size = math.prod(made[:3]), weight[1] * weight[2]
        if kind == "DEPTHWISE_CONV_2D":
            groups, per_group, columns = given[3], 1, weight[3] // given[3]
        else:
            per_group, columns, groups = weight[3], weight[0] * weight[3] // given[3], given[3] // weight[3]
        gaps = (options.dilationHFactor, options.dilationWFactor)
        which = convolution_kind(groups, per_group * groups, weight[1:3], gaps)
        return [
            contraction(
                which,
                places,
                per_group * size,
                columns,
                groups=groups,
                reads=reads,
                writes=writes,
                channels=per_group,
                strided=strided,
                bits=bits,
            )
        ]
    if kind == "TRANSPOSE_CONV":
        weight, given = shape(inputs[1]), shape(inputs[2])
        places = math.prod(given[:3])
        return [contraction("deconv", places, weight[3], weight[0] * weight[1] * weight[2], reads=reads, writes=writes)]
    if kind in ("FULLY_CONNECTED", "BATCH_MATMUL"):
        right = shape(inputs[1])
        stored = inputs[1] in constants
        wide = made[-1]
        many = writes / wide
        given = shape(inputs[0])
        length = right[-1] if kind == "FULLY_CONNECTED" else given[-1] if not item.builtinOptions.adjX else given[-2]
        blocks = 1.0 if stored or len(made) < 3 else float(math.prod(made[:-2]))
        return [
            contraction(
                "linear" if stored else "matmul",
                many / blocks,
                length,
                wide,
                groups=blocks,
                reads=reads,
                writes=writes,
                stored=stored,
                bits=bits,
            )
        ]
    if kind in _CLAMPS:
        return []
    if kind in ("QUANTIZE", "DEQUANTIZE"):
        return [Operator("elementwise", reads, writes, depth=float(made[-1] if made else 1), name="quantize")]
    depth = float(made[-1] if made else 1)
    return [Operator(_KINDS.get(kind, "elementwise"), reads, writes, depth=depth, name=kind)]
