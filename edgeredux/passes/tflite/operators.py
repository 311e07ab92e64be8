"""Operators, constants and lists of a TFLite model as `ai_edge_litert`'s objects hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeredux.errors import ArtifactError

_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


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
            if not 0 <= operator.opcodeIndex < len(model.operatorCodes or ()):
                raise ArtifactError(f"{name}: no readable TFLite file: an operator has no code")
            for index in (*numbers(operator.inputs), *numbers(operator.outputs)):
                if not -1 <= index < count:
                    raise ArtifactError(f"{name}: no readable TFLite file: an operator names tensor {index} of {count}")


def make_operator(model: Any, name: str, options: str, inputs: list[int], output: int) -> Any:
    """A new operator of version 1 with default options, to be put into a graph."""
    made = schema.OperatorT()
    made.opcodeIndex = code_index(model, name, 1)
    made.inputs, made.outputs = inputs, [output]
    made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
    made.builtinOptions = getattr(schema, f"{options}T")()
    return made


def code_index(model: Any, name: str, least_version: int) -> int:
    """The index of the operator's code at `least_version` or above, added where there is none."""
    wanted = getattr(schema.BuiltinOperator, name)
    for index, code in enumerate(model.operatorCodes):
        if max(int(code.builtinCode), int(code.deprecatedBuiltinCode)) == wanted and code.version >= least_version:
            return index
    made = schema.OperatorCodeT()
    made.builtinCode, made.deprecatedBuiltinCode, made.version = wanted, min(wanted, 127), least_version
    model.operatorCodes.append(made)
    return len(model.operatorCodes) - 1


def add_constant(model: Any, values: np.ndarray[Any, Any]) -> int:
    """The index of a new buffer with the bytes of `values`."""
    made = schema.BufferT()
    made.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    model.buffers.append(made)
    return len(model.buffers) - 1


def numbers(values: Any) -> list[int]:
    """A vector of the schema, absent or an array or a list, as integers."""
    return [] if values is None else [int(value) for value in values]
