"""What keeps a graph from being quantised, or options from fitting it."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from edgeredux.passes.onnx import files

_FAR = -1e30  # no weight and no activation comes near it; a mask's -3.4e38 does
QUANTISED = "the graph is quantised already"


def unknown_node(model: ir.Model, names: Iterable[str], option: str = "exclude") -> str | None:
    """The line for the first of these names that no node has."""
    unknown = set(names) - {node.name for node in model.graph.all_nodes()}
    return f"{option} names {min(unknown)!r}, which is no node" if unknown else None


def unknown_operator(model: ir.Model, kinds: Iterable[str], option: str) -> str | None:
    """The line for the first of these operator types that no node has."""
    absent = set(kinds) - {node.op_type for node in model.graph.all_nodes()}
    return f"{option} names {min(absent)!r}, which this graph does not have" if absent else None


def is_quantised(model: ir.Model) -> bool:
    """Whether an operator quantises activations."""
    return any(node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in model.graph.all_nodes())


def far_constant(model: ir.Model) -> str | None:
    """The first constant that would take a quantised value's whole range, as "constant NAME reaches -3.4e+38"."""
    for graph in files.graphs(model):
        for value in (*graph.initializers.values(), *(out for node in graph for out in node.outputs)):
            array = files.constant(value)
            if array is not None and array.dtype.kind == "f" and array.size and float(array.min()) <= _FAR:
                return f"constant {value.name} reaches {float(array.min()):g}"
    return None
