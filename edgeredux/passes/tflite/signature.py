"""A signature for files that have none: ai-edge-quantizer calibrates by the names of one."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgeredux.errors import ArtifactError
from edgeredux.passes.tflite import packing
from edgeredux.passes.tflite.operators import numbers

_KEY = b"serving_default"


def with_signature(content: bytes, name: str) -> bytes:
    """The file itself where it has a signature; else with one that names inputs and outputs as their tensors are.

    Raises ArtifactError where two inputs or two outputs have the same name, or one has none.
    """
    model = packing.load(content, name)
    if model.signatureDefs:
        return content
    graph = model.subgraphs[0]
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = _KEY, 0
    made.inputs = _named(graph, numbers(graph.inputs), name)
    made.outputs = _named(graph, numbers(graph.outputs), name)
    model.signatureDefs = [made]
    return packing.save(model, name)


def _named(graph: Any, indices: list[int], name: str) -> list[Any]:
    found = []
    for index in indices:
        item = schema.TensorMapT()
        item.name, item.tensorIndex = graph.tensors[index].name, index
        found.append(item)
    names = [item.name for item in found]
    if len(set(names)) < len(names) or not all(names):
        raise ArtifactError(f"{name}: it has no signature, and its tensors have no names that could make one")
    return found
