"""Normalised values whose channels a constant gain multiplies, and the layers that read them."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx import channels, files
from edgeredux.passes.onnx.observe import Array

# Normalisations by the input that is their gain and the one that is their shift.
_NORMS = {
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1, None),
    ("com.microsoft", "SimplifiedLayerNormalization"): (1, None),
    ("", "SimplifiedLayerNormalization"): (1, None),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (2, None),
    ("com.microsoft", "SkipLayerNormalization"): (2, 3),
}


@dataclasses.dataclass(frozen=True)
class Norm:
    """A normalised value, the constants [width] that its channels are multiplied and shifted by, and its readers."""

    value: ir.Value
    scaled: tuple[tuple[ir.Node, int], ...]  # (node, input) of gain and shift
    linears: tuple[ir.Node, ...]
    others: tuple[tuple[ir.Node, int], ...]


def norms(graph: ir.Graph) -> list[Norm]:
    """Every normalised value that at least one MatMul or Gemm by a constant weight reads."""
    found = []
    for node in graph:
        scaled = _scaled(node)
        if scaled is None or node.outputs[0].is_graph_output():
            continue
        uses = [(use.node, use.idx) for use in node.outputs[0].uses()]
        width = vector(*scaled[0]).size
        linears = tuple(reader for reader, index in uses if index == 0 and _reads(reader, width))
        others = tuple((reader, index) for reader, index in uses if reader not in linears)
        if linears and all(reader.graph is graph for reader, _ in uses):
            found.append(Norm(node.outputs[0], scaled, linears, others))
    return found


def _scaled(node: ir.Node) -> tuple[tuple[ir.Node, int], ...] | None:
    """Gain and shift of a normalisation, as one operator or written out: Mul by a constant, perhaps Add of another."""
    places = _NORMS.get((node.domain, node.op_type))
    if places is not None:
        gain, shift = places
        found = [(node, gain)] + ([(node, shift)] if shift is not None and _given(node, shift) else [])
        return tuple(found) if all(_is_vector(*place) for place in found) else None
    if node.domain == "" and node.op_type == "Mul":
        index = next((index for index in (0, 1) if _is_vector(node, index)), None)
        return None if index is None else ((node, index),)
    if node.domain == "" and node.op_type == "Add":
        index = next((index for index in (0, 1) if _is_vector(node, index)), None)
        entry = node.inputs[1 - index] if index is not None else None
        gained = entry.producer() if entry is not None and len(list(entry.uses())) == 1 else None
        if index is not None and gained is not None and gained.op_type == "Mul" and gained.domain == "":
            gains = _scaled(gained)
            return None if gains is None or gained.outputs[0].is_graph_output() else (*gains, (node, index))
    return None


def _given(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def _is_vector(node: ir.Node, index: int) -> bool:
    array = files.constant(node.inputs[index]) if _given(node, index) else None
    return array is not None and array.dtype == np.float32 and array.ndim == 1 and array.size > 1


def vector(node: ir.Node, index: int) -> Array:
    """The constant that a node has as this input."""
    array = files.constant(node.inputs[index])
    assert array is not None
    return array


def _reads(node: ir.Node, width: int) -> bool:
    fits = node.op_type in ("MatMul", "Gemm") and channels.is_linear(node)
    return fits and channels.rows(node).shape[1] == width
