"""Which constants of a graph could be stored sparse, and which of LiteRT's kernels would work on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeredux.errors import ArtifactError
from edgeredux.passes.tflite.operators import check, name_of, numbers
from edgeredux.passes.tflite.sparse_cost import Kind

Array = np.ndarray[Any, Any]
_TYPES = schema.TensorType
_DTYPES = {_TYPES.FLOAT32: np.float32, _TYPES.FLOAT16: np.float16, _TYPES.INT8: np.int8}
# Operators that take a weight from DENSIFY as they take a constant one, and where their weight is.
_IMAGE_RANK = 4
_PLACES = {"FULLY_CONNECTED": 1, "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1}


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


def weights(model: Any, name: str) -> list[Weight]:
    """Every constant weight that is stored dense, in the file's order. Raises ArtifactError on a damaged model."""
    check(model, name)
    found = []
    for index, graph in enumerate(model.subgraphs):
        readers: dict[int, list[tuple[Any, int]]] = {}
        for operator in graph.operators or ():
            for place, tensor in enumerate(numbers(operator.inputs)):
                readers.setdefault(tensor, []).append((operator, place))
        given = {*numbers(graph.inputs), *numbers(graph.outputs)}
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
    shape = [int(size) for size in numbers(item.shape)]
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
        inputs = numbers(operator.inputs)
        if name_of(model, operator) != "CONV_2D" or len(inputs) < 2:
            continue
        item, options = graph.tensors[inputs[1]], operator.builtinOptions
        if not isinstance(options, schema.Conv2DOptionsT):
            continue
        shape = [int(size) for size in numbers(item.shape)]
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
    if item.type == _TYPES.INT8 and np.any(np.asarray(numbers(quantization.zeroPoint) if quantization else []) != 0):
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
        if options is not None and getattr(options, "weightsFormat", None) != 0:
            return None, "shuffled weights, or options of another operator", 1
        if not numbers(operator.outputs):
            return None, "an operator without output", 1
        given, made = tensors[operator.inputs[0]], tensors[operator.outputs[0]]
        found.add(_fit(item.type, given.type, made.type))
        shape = [max(1, int(size)) for size in numbers(made.shape)[:-1]]
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
