"""Sparse weights put into a graph, so that every delegate reads them rightly."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeredux.passes.tflite import sparse_encoding
from edgeredux.passes.tflite.operators import add_constant, code_index, make_operator, name_of, numbers
from edgeredux.passes.tflite.sparse_cost import Kind
from edgeredux.passes.tflite.sparse_graph import Weight

_TYPES = schema.TensorType
# Of FULLY_CONNECTED, since which it knows sparse float weights, and int8 ones with a scale a row: tflite-runtime 2.14
# has neither version 12 nor these scales in its sparse kernel, and without the number it returned zeros.
_VERSIONS: dict[Kind | None, int] = {"float": 8, "int8-dynamic": 8, "int8": 12}


def store(model: Any, weight: Weight, encoded: sparse_encoding.Encoded, *, expand: bool) -> None:
    """Replace the weight's data by the encoding; readers get a guard, or a DENSIFY operator before them."""
    graph = model.subgraphs[weight.graph]
    item = graph.tensors[weight.tensor]
    item.sparsity = sparse_encoding.parameters(encoded)
    item.buffer = add_constant(model, encoded.values)
    readers = [o for o in graph.operators if weight.tensor in numbers(o.inputs)]
    if not expand:
        for operator in readers:
            operator.opcodeIndex = code_index(model, "FULLY_CONNECTED", _VERSIONS[weight.kind])
            guard(model, (weight.graph, operator))
        return
    dense = copy.copy(item)
    dense.name, dense.sparsity, dense.buffer = (item.name or b"") + b";dense", None, 0
    graph.tensors.append(dense)
    made = make_operator(model, "DENSIFY", "DensifyOptions", [weight.tensor], len(graph.tensors) - 1)
    graph.operators.insert(graph.operators.index(readers[0]), made)
    for operator in readers:
        operator.inputs = [len(graph.tensors) - 1 if t == weight.tensor else t for t in numbers(operator.inputs)]


def unguarded(model: Any) -> list[tuple[int, Any]]:
    """(subgraph, operator) of the fully-connected operators that a delegate would take for dense ones."""
    found = []
    for index, graph in enumerate(model.subgraphs):
        computed = {tensor for operator in graph.operators or () for tensor in numbers(operator.outputs)}
        for operator in graph.operators or ():
            inputs = numbers(operator.inputs)
            if name_of(model, operator) != "FULLY_CONNECTED" or len(inputs) < 2 or inputs[1] < 0:
                continue
            bias = inputs[2] if len(inputs) > 2 else -1
            if graph.tensors[inputs[1]].sparsity is not None and bias not in computed:
                found.append((index, operator))
    return found


def guard(model: Any, place: tuple[int, Any]) -> None:
    """Let the operator's bias be computed: RESHAPE to the shape it has. A bias of zeros where there is none."""
    graph, operator = model.subgraphs[place[0]], place[1]
    inputs = numbers(operator.inputs)
    weight, given = graph.tensors[inputs[1]], graph.tensors[inputs[0]]
    rows = int(numbers(weight.shape)[0])
    name = graph.tensors[numbers(operator.outputs)[0]].name or b""  # names made from it are as unique as it is
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
    shape.buffer = add_constant(model, np.array([rows], np.int32))
    graph.tensors.append(shape)
    made = make_operator(model, "RESHAPE", "ReshapeOptions", [inputs[2], len(graph.tensors) - 1], result)
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
    made.buffer = add_constant(model, values)
    graph.tensors.append(made)
    return len(graph.tensors) - 1
