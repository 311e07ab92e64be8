"""Squared differences written as the two operators that also exist with 16-bit activations."""

from __future__ import annotations

import copy

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from edgeredux.passes.tflite.operators import code_index

_SQUARED = schema.BuiltinOperator.SQUARED_DIFFERENCE


def split_squares(content: bytes) -> tuple[bytes, int]:
    """The file with every SQUARED_DIFFERENCE(a, b) as d = SUB(a, b); MUL(d, d), and how many there were.

    The same arithmetic. TFLite has no int16 SQUARED_DIFFERENCE: a LayerNorm of 16-bit activations would leave the
    integers, and the NPU, once a layer.
    """
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    found = 0
    for graph in model.subgraphs:
        operators = []
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            if max(int(code.builtinCode), int(code.deprecatedBuiltinCode)) != _SQUARED:
                operators.append(operator)
                continue
            found += 1
            out = graph.tensors[operator.outputs[0]]
            middle = copy.copy(out)
            middle.name = (out.name or b"") + b";difference"
            middle.buffer = 0
            graph.tensors.append(middle)
            index = len(graph.tensors) - 1
            for name, inputs, outputs in (
                ("Sub", operator.inputs, [index]),
                ("Mul", [index, index], operator.outputs),
            ):
                made = schema.OperatorT()
                made.opcodeIndex = code_index(model, name.upper(), 1)
                made.inputs, made.outputs = inputs, outputs
                made.builtinOptionsType = getattr(schema.BuiltinOptions, f"{name}Options")
                made.builtinOptions = getattr(schema, f"{name}OptionsT")()
                operators.append(made)
        graph.operators = operators
    if not found:
        return content, 0
    builder = flatbuffers.Builder(len(content) + 4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output()), found
