"""What an attention mask that a graph computes lets through, found by computing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from edgeredux import caching
from edgeredux.caching import Cache

Array = np.ndarray[Any, Any]

_FAR = 1 << 17  # tokens; a window that is wider than this is none for any model that runs on a device
_LARGEST = 1 << 20  # numbers in a constant that a mask may depend on; more is a weight, not a mask
_HIDDEN = -1e9


@dataclass(frozen=True)
class Window:
    """Each token sees itself and what came before it, padding left out: all of it, or the last `size` tokens."""

    size: int | None


def window_of(mask: ir.Value, model: ir.Model, cache: Cache) -> Window | str:
    """The window of an additive mask [batch, 1, sequence, total], or why it is none.

    The part of the graph that makes the mask is run: once at 131072 tokens, whose count of visible ones is the window,
    then on padded batches with and without a past, where every element must be what that window says.
    """
    made = _session(mask, model)
    if isinstance(made, str):
        return made
    seen = _visible(made, cache, np.ones((1, _FAR), np.int64), 1)
    if isinstance(seen, str):
        return seen
    count = int(seen.sum())
    window = Window(None if count == _FAR else count)
    for padded, tokens in _probes(window):
        seen = _visible(made, cache, padded, tokens)
        if isinstance(seen, str):
            return seen
        wanted = _wanted(window, padded, tokens)
        rows = wanted.any(-1)  # a padding token at the left sees nothing; what it computes is never read
        if not np.array_equal(np.broadcast_to(seen, wanted.shape)[rows], wanted[rows]):
            return "its mask is not causal with an optional window and padding"
    return window


def _probes(window: Window) -> Iterator[tuple[Array, int]]:
    """Attention masks and how many of their tokens are new."""
    random = np.random.default_rng(0)
    for total, tokens in ((7, 7), (8, 3), (10, 1)):
        padded = np.ones((3, total), np.int64)
        padded[1, -2:] = 0
        padded[2, :2] = 0
        yield padded, tokens
        yield (random.random((2, total)) < 0.7).astype(np.int64), tokens
    if window.size is not None:
        yield np.ones((1, window.size + 3), np.int64), 5 if window.size > 2 else 2


def _wanted(window: Window, padded: Array, tokens: int) -> Array:
    total = padded.shape[1]
    query, key = np.arange(total - tokens, total)[:, None], np.arange(total)[None, :]
    seen = key <= query
    if window.size is not None:
        seen &= key > query - window.size
    found: Array = seen[None, None] & (padded[:, None, None, :] != 0)
    return found


def _visible(session: ort.InferenceSession, cache: Cache, padded: Array, tokens: int) -> Array | str:
    past = padded.shape[1] - tokens
    shapes = caching.past_shapes(cache)
    feed = {}
    for given in session.get_inputs():
        if given.name == "attention_mask":
            feed[given.name] = padded
        elif given.name == "position_ids":
            feed[given.name] = caching.positions(padded, tokens)
        elif given.name == "input_ids":
            feed[given.name] = np.zeros((len(padded), tokens), np.int64)
        elif given.name in shapes:
            heads, size = shapes[given.name]
            feed[given.name] = np.zeros((len(padded), heads, past, size), np.float32)
        else:
            return f"its mask depends on the input {given.name}"
    (mask,) = session.run(None, feed)
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != (tokens, padded.shape[1]):
        return f"its mask has the shape {list(mask.shape)}, not [batch, 1, sequence, total]"
    if not ((mask == 0) | (mask <= _HIDDEN)).all():
        return "its mask holds numbers that neither show nor hide, as a position bias does"
    seen: Array = mask == 0
    return seen


def _session(mask: ir.Value, model: ir.Model) -> ort.InferenceSession | str:
    nodes, inputs, constants = _makers(mask)
    if any(value.const_value is None or value.const_value.size > _LARGEST for value in constants):
        return "its mask depends on weights"
    graph = onnx.GraphProto(name="mask")
    graph.node.extend(ir.serde.serialize_node(node) for node in model.graph if node in nodes)
    graph.input.extend(ir.serde.serialize_value(value) for value in inputs)
    for value in constants:
        assert value.const_value is not None
        graph.initializer.append(onnx.numpy_helper.from_array(value.const_value.numpy(), value.name))
    graph.output.append(onnx.helper.make_tensor_value_info(str(mask.name), onnx.TensorProto.FLOAT, None))
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # onnxruntime raises types of its own, which it does not name
        return f"its mask cannot be computed alone ({type(problem).__name__})"


def _makers(mask: ir.Value) -> tuple[set[ir.Node], Sequence[ir.Value], Sequence[ir.Value]]:
    """The nodes that the mask comes from, and the graph inputs and constants that they read."""
    nodes: set[ir.Node] = set()
    inputs: dict[str, ir.Value] = {}
    constants: dict[str, ir.Value] = {}
    todo = [mask]
    while todo:
        value = todo.pop()
        node = value.producer()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [entry for entry in node.inputs if entry is not None]
        elif node is None and value.is_graph_input():
            inputs[str(value.name)] = value
        elif node is None:
            constants[str(value.name)] = value
    return nodes, list(inputs.values()), list(constants.values())
