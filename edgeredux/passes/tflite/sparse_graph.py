"""The graph's side of sparse weights: which constants could be stored sparse, and how they are put in."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeredux.errors import ArtifactError
from edgeredux.passes.tflite import sparse_encoding
from edgeredux.passes.tflite.sparse_cost import Kind

Array = np.ndarray[Any, Any]
_TYPES = schema.TensorType
_DTYPES = {_TYPES.FLOAT32: np.float32, _TYPES.FLOAT16: np.float16, _TYPES.INT8: np.int8}
_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
# Operators that take a weight from DENSIFY as they take a constant one, and where their weight is.
_IMAGE_RANK = 4
_PLACES = {"FULLY_CONNECTED": 1, "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1}
# Of FULLY_CONNECTED, since which it knows sparse float weights, and int8 ones with a scale a row: tflite-runtime 2.14
# has neither version 12 nor these scales in its sparse kernel, and without the number it returned zeros.
_VERSIONS: dict[Kind | None, int] = {"float": 8, "int8-dynamic": 8, "int8": 12}


@dataclass(frozen=True)
class Weight:
    """A constant that operators of one subgraph read as their weight."""

    graph: int
    tensor: int
    name: str
    operator: str
    values: Array
    kind: Kind | None  # which sparse kernels could work on it; None with `no_kernel` saying why none
    no_kernel: str
    positions: int  # rows of input that one inference passes through it
    no_expand: str | None  # why it cannot come from DENSIFY
    refused: str | None  # why it must stay as it is

    @property
    def zeros(self) -> float:
        """Share of exact zeros."""
        return 1 - np.count_nonzero(self.values) / self.values.size if self.values.size else 0.0


def name_of(model: Any, operator: Any) -> str:
    """The operator's builtin name; "CUSTOM" for others."""
    code = model.operatorCodes[operator.opcodeIndex]
    # Codes below 127 are also in the older one-byte field; files of old converters hold only that.
    return str(_NAMES.get(max(int(code.builtinCode), int(code.deprecatedBuiltinCode)), "CUSTOM"))


def check(model: Any, name: str) -> None:
    """Raise ArtifactError on an operator that points outside of its model."""
    for graph in model.subgraphs:
        count = len(graph.tensors or ())
        for operator in graph.operators or ():
            if not 0 <= operator.opcodeIndex < len(model.operatorCodes):
                raise ArtifactError(f"{name}: no readable TFLite file: an operator has no code")
            for index in (*_list(operator.inputs), *_list(operator.outputs)):
                if not -1 <= index < count:
                    raise ArtifactError(f"{name}: no readable TFLite file: an operator names tensor {index} of {count}")


def weights(model: Any, name: str) -> list[Weight]:
    """Every constant weight that is stored dense, in the file's order. Raises ArtifactError on a damaged model."""
    check(model, name)
    found = []
    for index, graph in enumerate(model.subgraphs):
        readers: dict[int, list[tuple[Any, int]]] = {}
        for operator in graph.operators or ():
            for place, tensor in enumerate(_list(operator.inputs)):
                readers.setdefault(tensor, []).append((operator, place))
        given = {*_list(graph.inputs), *_list(graph.outputs)}
        for tensor, read_by in sorted(readers.items()):
            kinds = sorted({name_of(model, operator) for operator, _ in read_by})
            if tensor < 0 or not any(_PLACES.get(name_of(model, o)) == place for o, place in read_by):
                continue
            made = _weight(model, index, tensor, read_by, kinds, name)
            if made is not None:
                found.append(made if tensor not in given else _refuse(made, "the graph itself gives out"))
    return found


def _weight(
    model: Any, graph: int, tensor: int, read_by: list[tuple[Any, int]], kinds: list[str], where: str
) -> Weight | None:
    item = model.subgraphs[graph].tensors[tensor]
    data = model.buffers[item.buffer].data
    if item.sparsity is not None or data is None or len(data) == 0 or item.isVariable:
        return None
    shape = [int(size) for size in _list(item.shape)]
    text = (item.name or b"").decode(errors="replace")
    refused = None
    dtype = _DTYPES.get(item.type)
    if dtype is None:
        values = np.zeros(0, np.uint8)
        kind = next((n for n, code in vars(_TYPES).items() if code == item.type), str(item.type))
        refused = f"of type {kind}, which DENSIFY does not read"
    else:
        count = int(np.prod(shape, dtype=object))
        if min(shape, default=0) < 0 or count * np.dtype(dtype).itemsize != len(data):
            raise ArtifactError(f"{where}: no readable TFLite file: weight {text} is {shape}, its data {len(data)} B")
        values = np.frombuffer(np.ascontiguousarray(data).tobytes(), dtype).reshape(shape)
        refused = _refusal(model, item, read_by, len(shape))
    kernel, no_kernel, positions = _kernel(model, graph, read_by, kinds, item, len(shape))
    no_expand = None
    if _sparse_inference(model, graph):
        no_expand = "a DENSIFY operator would switch XNNPACK's sparse inference on"
    if item.type == _TYPES.INT8 and "FULLY_CONNECTED" in kinds:
        # Measured from ai-edge-litert 1.2 to 2.3: "failed to delegate FULLY_CONNECTED", and the file does not load.
        no_expand = "XNNPACK does not load an int8 layer whose weight is expanded at load"
    return Weight(graph, tensor, text, "+".join(kinds), values, kernel, no_kernel, positions, no_expand, refused)


def _sparse_inference(model: Any, index: int) -> bool:
    """Whether one DENSIFY operator would make XNNPACK run the convolutions of the graph channels first, sparse.

    It does so on Arm (on x86 only without AVX) for what hangs on a 3x3 convolution of 3 channels with stride 2 whose
    padding is an operator of its own, when more than two thirds of the 1x1 weights are zeros, however they are stored.
    Its MEAN and SUM with kept axes then come out as [N, C, 1, 1] instead of [N, 1, 1, C].
    """
    graph, enters, sparse = model.subgraphs[index], False, False
    for operator in graph.operators or ():
        inputs = _list(operator.inputs)
        if name_of(model, operator) != "CONV_2D" or len(inputs) < 2 or operator.builtinOptions is None:
            continue
        item, options = graph.tensors[inputs[1]], operator.builtinOptions
        shape = [int(size) for size in _list(item.shape)]
        if len(shape) != _IMAGE_RANK or item.type not in (_TYPES.FLOAT32, _TYPES.FLOAT16):
            continue
        if shape[1:3] == [1, 1]:
            data = model.buffers[item.buffer].data
            if item.type == _TYPES.FLOAT32 and data is not None and len(data) == 4 * int(np.prod(shape, dtype=object)):
                values = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.float32)
                sparse |= bool(3 * np.count_nonzero(values) <= values.size)
            else:  # computed by another operator, or of half precision
                sparse = True
        enters |= shape[1:] == [3, 3, 3] and options.padding == schema.Padding.VALID and options.strideH == 2
    return enters and sparse


def _refuse(weight: Weight, why: str) -> Weight:
    return Weight(**{**vars(weight), "refused": why})


def _refusal(model: Any, item: Any, read_by: list[tuple[Any, int]], rank: int) -> str | None:
    others = sorted({name_of(model, o) for o, place in read_by if _PLACES.get(name_of(model, o)) != place})
    if others:
        return f"also read by {', '.join(others)}, which cannot read it sparse"
    if rank < 2:
        return "of rank 1"
    quantization = item.quantization
    if quantization is not None and quantization.details is not None:
        return "quantised block by block"
    if item.type == _TYPES.INT8 and np.any(np.asarray(_list(quantization.zeroPoint) if quantization else []) != 0):
        return "with a zero point that is not 0, so that zeros are not stored as zeros"
    return None


def _kernel(
    model: Any, graph: int, read_by: list[tuple[Any, int]], kinds: list[str], item: Any, rank: int
) -> tuple[Kind | None, str, int]:
    """Which sparse kernels fit all readers, or why none; and through how many positions they pass it."""
    tensors = model.subgraphs[graph].tensors
    if kinds != ["FULLY_CONNECTED"] or rank != 2:
        return None, "no sparse kernel of its own for convolutions", 1
    found: set[Kind | None] = set()
    positions = 1
    for operator, _ in read_by:
        options = operator.builtinOptions
        if options is not None and options.weightsFormat != 0:
            return None, "shuffled weights", 1
        given, made = tensors[operator.inputs[0]], tensors[operator.outputs[0]]
        found.add(_fit(item.type, given.type, made.type))
        shape = [max(1, int(size)) for size in _list(made.shape)[:-1]]
        positions = max(positions, int(np.prod(shape, dtype=object)))
    kind = found.pop() if len(found) == 1 else None
    return kind, "" if kind else "no sparse kernel for these types", positions


def _fit(weight: int, given: int, made: int) -> Kind | None:
    if (weight, given, made) == (_TYPES.FLOAT32,) * 3:
        return "float"
    if (weight, given, made) == (_TYPES.INT8,) * 3:
        return "int8"
    if (weight, given, made) == (_TYPES.INT8, _TYPES.FLOAT32, _TYPES.FLOAT32):
        return "int8-dynamic"
    return None


def store(model: Any, weight: Weight, encoded: sparse_encoding.Encoded, *, expand: bool) -> None:
    """Replace the weight's data by the encoding; readers get a guard, or a DENSIFY operator before them."""
    graph = model.subgraphs[weight.graph]
    item = graph.tensors[weight.tensor]
    item.sparsity = sparse_encoding.parameters(encoded)
    item.buffer = _constant(model, encoded.values)
    readers = [o for o in graph.operators if weight.tensor in _list(o.inputs)]
    if not expand:
        for operator in readers:
            operator.opcodeIndex = _code(model, "FULLY_CONNECTED", _VERSIONS[weight.kind])
            guard(model, (weight.graph, operator))
        return
    dense = copy.copy(item)
    dense.name, dense.sparsity, dense.buffer = (item.name or b"") + b";dense", None, 0
    graph.tensors.append(dense)
    made = _operator(model, "DENSIFY", "DensifyOptions", [weight.tensor], len(graph.tensors) - 1)
    graph.operators.insert(graph.operators.index(readers[0]), made)
    for operator in readers:
        operator.inputs = [len(graph.tensors) - 1 if t == weight.tensor else t for t in _list(operator.inputs)]


def unguarded(model: Any) -> list[tuple[int, Any]]:
    """(subgraph, operator) of the fully-connected operators that a delegate would take for dense ones."""
    found = []
    for index, graph in enumerate(model.subgraphs):
        computed = {tensor for operator in graph.operators or () for tensor in _list(operator.outputs)}
        for operator in graph.operators or ():
            inputs = _list(operator.inputs)
            if name_of(model, operator) != "FULLY_CONNECTED" or len(inputs) < 2 or inputs[1] < 0:
                continue
            bias = inputs[2] if len(inputs) > 2 else -1
            if graph.tensors[inputs[1]].sparsity is not None and bias not in computed:
                found.append((index, operator))
    return found


def guard(model: Any, place: tuple[int, Any]) -> None:
    """Let the operator's bias be computed: RESHAPE to the shape it has. A bias of zeros where there is none."""
    graph, operator = model.subgraphs[place[0]], place[1]
    inputs = _list(operator.inputs)
    weight, given = graph.tensors[inputs[1]], graph.tensors[inputs[0]]
    rows = int(_list(weight.shape)[0])
    name = graph.tensors[_list(operator.outputs)[0]].name or b""  # names made from it are as unique as it is
    if len(inputs) < 3 or inputs[2] < 0:
        inputs = [*inputs[:2], _zeros(model, graph, weight, given, rows, name)]
    bias = graph.tensors[inputs[2]]
    computed = copy.copy(bias)
    computed.name, computed.buffer = name + b";bias", 0
    if bias.quantization is not None and np.size(bias.quantization.scale) > 1:
        computed.quantization = None  # kernels with a scale a row do not read those of the bias
    graph.tensors.append(computed)
    result = len(graph.tensors) - 1
    shape = schema.TensorT()
    shape.name, shape.shape, shape.type = name + b";bias;shape", np.array([1], np.int32), _TYPES.INT32
    shape.buffer = _constant(model, np.array([rows], np.int32))
    graph.tensors.append(shape)
    made = _operator(model, "RESHAPE", "ReshapeOptions", [inputs[2], len(graph.tensors) - 1], result)
    made.builtinOptions.newShape = np.array([rows], np.int32)
    graph.operators.insert(graph.operators.index(operator), made)
    operator.inputs = [inputs[0], inputs[1], result]


def _zeros(model: Any, graph: Any, weight: Any, given: Any, rows: int, name: bytes) -> int:
    """A bias of zeros, of the type and scale that the operator wants."""
    made = schema.TensorT()
    made.name, made.shape, made.type = name + b";zeros", np.array([rows], np.int32), _TYPES.FLOAT32
    values = np.zeros(rows, np.float32)
    if given.type == _TYPES.INT8:
        made.type, values = _TYPES.INT32, np.zeros(rows, np.int32)
        made.quantization = schema.QuantizationParametersT()
        scale = np.asarray(weight.quantization.scale, np.float32) * np.float32(given.quantization.scale[0])
        made.quantization.scale, made.quantization.zeroPoint = scale, np.zeros(scale.size, np.int64)
    made.buffer = _constant(model, values)
    graph.tensors.append(made)
    return len(graph.tensors) - 1


def _operator(model: Any, name: str, options: str, inputs: list[int], output: int) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex = _code(model, name, 1)
    made.inputs, made.outputs = inputs, [output]
    made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
    made.builtinOptions = getattr(schema, f"{options}T")()
    return made


def _code(model: Any, name: str, least_version: int) -> int:
    """The index of the operator's code at `least_version` or above, added where there is none."""
    wanted = getattr(schema.BuiltinOperator, name)
    for index, code in enumerate(model.operatorCodes):
        if max(int(code.builtinCode), int(code.deprecatedBuiltinCode)) == wanted and code.version >= least_version:
            return index
    made = schema.OperatorCodeT()
    made.builtinCode, made.deprecatedBuiltinCode, made.version = wanted, min(wanted, 127), least_version
    model.operatorCodes.append(made)
    return len(model.operatorCodes) - 1


def _constant(model: Any, values: Array) -> int:
    made = schema.BufferT()
    made.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    model.buffers.append(made)
    return len(model.buffers) - 1


def _list(values: Any) -> list[int]:
    return [] if values is None else [int(value) for value in values]
