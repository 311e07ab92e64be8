"""Tools that hold several copies of a model, given a large one without the weights that they need not see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx import files

PORTION_BYTES = 256_000_000
_LARGE = 1 << 20  # bytes; smaller ones may be shapes and scales, and together they are nothing


def in_portions(model: ir.Model, folder: Path, work: Callable[[Path, Path], None], most: int) -> ir.Model:
    """The model after `work` has rewritten it file to file, with at most `most` bytes of products' weights at a time.

    Every other large weight is an input of the file that `work` gets, which a tool for products with constant weights
    leaves alone. Products that read the same value are in one portion, so that what is done to that value is done once.
    """
    given, made = folder / "in.onnx", folder / "out.onnx"
    for portion in _portions(model.graph, most):
        hidden = {name: tensor for name, tensor in _large(model.graph) if name not in portion}
        for name in hidden:
            value = model.graph.initializers.pop(name)
            value.dtype, value.shape, value.const_value = hidden[name].dtype, ir.Shape(hidden[name].shape.numpy()), None
            model.graph.inputs.append(value)
        files.write(model, given)
        work(given, made)
        before, model = model, files.read(made)
        files.came_apart(model, like=before)
        for value in [value for value in model.graph.inputs if value.name in hidden]:
            model.graph.inputs.remove(value)
            value.const_value = hidden[str(value.name)]
            model.graph.register_initializer(value)
        files.release(model)
    return model


def _portions(graph: ir.Graph, most: int) -> list[set[str]]:
    """The large weights of products, in sets of at most `most` bytes where those of one value allow it."""
    large = {name: tensor.nbytes for name, tensor in _large(graph)}
    groups: list[_Group] = []
    for node in graph.all_nodes():
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") and len(node.inputs) > 1 else None
        if weight is None or str(weight.name) not in large or not weight.is_initializer():
            continue
        mine = _Group({str(weight.name)}, {id(node.inputs[0])})
        for other in [other for other in groups if other.meets(mine)]:
            groups.remove(other)
            mine = _Group(other.weights | mine.weights, other.reads | mine.reads)
        groups.append(mine)
    found: list[set[str]] = [set()]  # the first takes the products without a large weight along
    room = most
    for group in groups:
        size = sum(large[name] for name in group.weights)
        if size > room and found[-1]:
            found.append(set())
            room = most
        found[-1] |= group.weights
        room -= size
    return found


@dataclass(frozen=True)
class _Group:
    weights: set[str]
    reads: set[int] = field(default_factory=set)

    def meets(self, other: _Group) -> bool:
        return bool(self.weights & other.weights or self.reads & other.reads)


def _large(graph: ir.Graph) -> list[tuple[str, ir.TensorProtocol]]:
    return [
        (str(value.name), value.const_value)
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes > _LARGE and not value.is_graph_input()
    ]


class Hollow:
    """A model whose large weights are empty, `[0, ...]`, for a tool that looks at names and types alone."""

    def __init__(self, model: ir.Model) -> None:
        self._held: dict[str, ir.TensorProtocol] = {}
        if files.weight_bytes(model) <= files.APART_BYTES:
            return
        for name, tensor in _large(model.graph):
            self._held[name] = tensor
            empty = np.zeros((0, *tensor.shape.numpy()[1:]), tensor.dtype.numpy())
            model.graph.initializers[name].const_value = ir.tensor(empty, name=name)

    def __bool__(self) -> bool:
        return bool(self._held)

    def fill(self, model: ir.Model, convert: Callable[[ir.TensorProtocol, ir.DataType], ir.TensorProtocol]) -> None:
        """Give the weights back: as they were, or where the tool made another type of one, by `convert` when read."""
        for value in self._named(model):
            tensor = self._held[str(value.name)]
            assert value.const_value is not None
            value.const_value = convert(tensor, value.const_value.dtype)
            value.shape = ir.Shape(tensor.shape.numpy())

    def _named(self, model: ir.Model) -> Iterator[ir.Value]:
        return (value for value in model.graph.initializers.values() if value.name in self._held)
