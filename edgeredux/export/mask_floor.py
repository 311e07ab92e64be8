"""Attention masks of a TFLite file that hide by adding the lowest float, made to hide by adding a small number.

A mask constant of -3.4e38 is harmless in float32. Under static int8 it stretches the range of the tensor it is added
to, and the attention scores all fall on one step of it: cosine to float drops from 0.999 to 0.36 for a padded batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

# Operators that build or add a mask. A lowest-float constant elsewhere (MAXIMUM, PADV2 before a max pool) means
# "nothing is lower" and has to stay.
_MASKING = ("SELECT", "SELECT_V2", "ADD", "SUB", "MUL", "FILL", "BROADCAST_TO")
_HIDES = -1e30  # nothing that a network computes with is as low
_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


def raise_masks(path: Path, floor: float) -> list[str]:
    """Raise to `floor` every float32 constant below -1e30 (-inf too) that only masking operators read, in the file.

    Only the constants' bytes change: sizes, order and all else of the file stay. Returns the tensors' names, sorted.
    """
    content = bytearray(path.read_bytes())
    model = schema.Model.GetRootAs(content)
    changed = []
    for index in range(model.SubgraphsLength()):
        graph = model.Subgraphs(index)
        readers = _readers(model, graph)
        for position in range(graph.TensorsLength()):
            tensor = graph.Tensors(position)
            if tensor.Type() != schema.TensorType.FLOAT32 or not readers.get(position):
                continue
            raw = model.Buffers(tensor.Buffer()).DataAsNumpy()
            if not isinstance(raw, np.ndarray) or raw.size == 0:
                continue
            values = raw.view(np.float32)  # a view of `content`: writing to it writes to the file's bytes
            low = values < _HIDES
            if low.any() and readers[position] <= set(_MASKING):
                values[low] = floor
                changed.append(tensor.Name().decode(errors="replace"))
    if changed:
        path.write_bytes(content)
    return sorted(changed)


def _readers(model: Any, graph: Any) -> dict[int, set[str]]:
    """The operators that read each tensor of a subgraph."""
    found: dict[int, set[str]] = {}
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        # Codes below 127 are also in the older one-byte field; files of old converters hold only that.
        name = _OPERATORS.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "CUSTOM")
        for place in range(operator.InputsLength()):
            found.setdefault(operator.Inputs(place), set()).add(name)
    return found


def count_operators(path: Path) -> dict[str, int]:
    """How often each operator occurs in all subgraphs of a TFLite file, by name."""
    model = schema.Model.GetRootAs(path.read_bytes())
    found: dict[str, int] = {}
    for index in range(model.SubgraphsLength()):
        graph = model.Subgraphs(index)
        for place in range(graph.OperatorsLength()):
            code = model.OperatorCodes(graph.Operators(place).OpcodeIndex())
            name = _OPERATORS.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "CUSTOM")
            found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))
