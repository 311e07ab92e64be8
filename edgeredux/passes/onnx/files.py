"""ONNX files as onnx_ir models: read with one-line errors, written as one file, or with external data above 2 GB."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeredux.errors import ArtifactError, one_line

# protobuf cannot hold more than 2 GiB; what is not weights needs room too.
SINGLE_FILE_BYTES = 1_900_000_000
# What came with its weights beside it keeps them there from this size on: a single file is held twice while it is
# written, as objects and as bytes.
APART_BYTES = 400_000_000
_CAME_APART = "edgeredux.came_apart"  # of a model's meta, which no file holds


def read(path: Path) -> ir.Model:
    """The model at `path`, weights mapped from the file. Raises ArtifactError."""
    try:
        model = ir.load(path)
        for tensor in initializers(model):
            tensor.numpy()  # external data that is missing or too short shows here, not in the middle of a pass
    except Exception as problem:  # protobuf, onnx_ir and the operating system each raise their own
        raise ArtifactError(one_line(f"{path.name}: no readable ONNX file: {problem}", 300)) from problem
    model.meta[_CAME_APART] = any(isinstance(tensor, ir.ExternalTensor) for tensor in initializers(model))
    if not model.graph.outputs:
        raise ArtifactError(f"{path.name}: no readable ONNX file: it holds no graph with outputs")
    if (name := _undefined(model)) is not None:
        hint = "a sparse initializer? The pass sparse_initializer comes last"
        raise ArtifactError(one_line(f"{path.name}: nothing defines {name!r}, which an operator reads ({hint})", 300))
    return model


def _undefined(model: ir.Model) -> str | None:
    """The first value that a node reads and nothing makes; onnx_ir leaves sparse initializers out, for instance."""
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is None or value.producer() is not None or value.is_graph_input() or value.is_initializer():
                continue
            return str(value.name)
    return None


def write(model: ir.Model, out: Path) -> None:
    """Write the model: one file, or `out` and `out`.data where the weights exceed what one file can hold.

    Weights come tensor by tensor from where they lie; a large model whose weights came beside it keeps them so.
    Raises ArtifactError for a model that protobuf cannot hold.
    """
    size = weight_bytes(model)
    apart = size > SINGLE_FILE_BYTES or (size > APART_BYTES and bool(model.meta.get(_CAME_APART)))
    if not apart:
        ir.external_data.load_to_model(model)  # what still lies in another file would be looked for beside `out`
    try:
        ir.save(model, out, external_data=out.name + ".data" if apart else None)
    except ir.serde.SerdeError as problem:
        # A name that is no text, say: it was read as bytes that protobuf does not write.
        cause = problem.__cause__ or problem
        raise ArtifactError(one_line(f"{out.name}: the model cannot be written: {cause}", 300)) from problem
    if apart:
        release(model)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all graphs' initializers."""
    return sum(tensor.nbytes for tensor in initializers(model))


def came_apart(model: ir.Model, *, like: ir.Model) -> None:
    """Let `write` treat a model that another tool made of `like` as it would treat `like`."""
    model.meta[_CAME_APART] = like.meta.get(_CAME_APART)


def release(model: ir.Model) -> None:
    """Give back the memory of weights mapped from a file; they are mapped anew when somebody reads them."""
    for tensor in initializers(model):
        if isinstance(tensor, ir.ExternalTensor):
            with contextlib.suppress(BufferError):  # an array of somebody else lies in it and will let go of it
                tensor.release()


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, then every subgraph of its If, Loop and Scan nodes."""
    yield model.graph
    for node in model.graph.all_nodes():
        yield from subgraphs(node)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node itself holds: branches or a body."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def initializers(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """The tensors of all graphs' initializers."""
    for graph in graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def constant(value: ir.Value | None) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """What a value holds when it is the same in every run: an initializer that is no input, or a Constant node."""
    if value is None:
        return None
    if value.is_initializer() and not value.is_graph_input():
        return None if value.const_value is None else value.const_value.numpy()
    node = value.producer()
    if node is not None and node.op_type == "Constant" and node.domain == "":
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()
    return None


def made_by(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node of this standard operator that makes a value, None where another one or nothing does."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind and node.domain == "" else None


def count(model: ir.Model) -> int:
    """Operators of all graphs and functions."""
    return sum(1 for _ in model.graph.all_nodes()) + sum(len(list(f.all_nodes())) for f in model.functions.values())


def kinds(model: ir.Model) -> dict[tuple[str, str], int]:
    """How often each (domain, operator) occurs, subgraphs included."""
    return dict(Counter((node.domain, node.op_type) for node in model.graph.all_nodes()))
