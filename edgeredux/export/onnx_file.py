"""An exported ONNX graph made into a file: named by the model, free of the machine it was made on, checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from edgeredux.errors import ArtifactError, one_line

# A protobuf message ends at 2 GiB; weights beyond this go to <file>.data, which leaves room for the graph itself.
INLINE_LIMIT_BYTES = 2**31 - 2**26


def name_shapes(graph: ir.Model, axes: Mapping[str, tuple[str | None, ...]], fixed: Mapping[str, int]) -> None:
    """Give inputs and outputs the axis names of the model, weights their state_dict names, and drop all metadata."""
    for value in [*graph.graph.inputs, *graph.graph.outputs]:
        assert value.name is not None
        if value.shape is None or value.name not in axes:
            continue
        dims = [
            found if axis is None else fixed.get(axis, axis)
            for axis, found in zip(axes[value.name], value.shape, strict=True)
        ]
        value.shape = ir.Shape(dims)
    cached = any(str(value.name).startswith("past_key_values.") for value in graph.graph.inputs)
    for name in list(graph.graph.initializers):
        short = name.removeprefix("wrapped.").removeprefix("decoder." if cached else "")
        if short != name and short not in graph.graph.initializers:
            graph.graph.initializers[name].name = short
    common.ClearMetadataAndDocStringPass()(graph)
    graph.metadata_props.clear()
    graph.graph.metadata_props.clear()
    for value in [*graph.graph.inputs, *graph.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
    for node in graph.graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None


def write(graph: ir.Model, out: Path) -> None:
    """Save and check the file. Weights beyond INLINE_LIMIT_BYTES go to <file>.data beside it."""
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    ir.save(graph, out, external_data=data_beside(out).name if size > INLINE_LIMIT_BYTES else None)
    try:
        onnx.checker.check_model(str(out), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise ArtifactError(one_line(f"{out.name}: the exported graph is not valid ONNX: {problem}", 300)) from problem


def data_beside(out: Path) -> Path:
    """Where the external weights of `out` lie."""
    return out.with_name(out.name + ".data")


def describe(out: Path) -> dict[str, Any]:
    """bytes_after of the file with its external weights, operators (count by type), parameters."""
    graph = onnx.load(out, load_external_data=False).graph
    data = data_beside(out)
    return {
        "bytes_after": out.stat().st_size + (data.stat().st_size if data.is_file() else 0),
        "operators": dict(sorted(Counter(node.op_type for node in graph.node).items())),
        "nodes": len(graph.node),
    }
