"""The graph of a module by torch.export, and its coupling found by one walk through it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

# coupling_shapes registers its rules on import.
from edgeredux.errors import ModelError, one_line
from edgeredux.model import Model
from edgeredux.pruning import coupling_shapes as coupling_shapes
from edgeredux.pruning.coupling import Book, Coupling, Dims, Port, couple
from edgeredux.pruning.coupling_rules import PASSED, RULES, Call, elementwise, fixed, give_up
from edgeredux.seams import Feed

_Conv = torch.nn.modules.conv._ConvNd
_PREFIX = "module."
# Look at their input, change nothing.
_HARMLESS = ("aten._assert_tensor_metadata", "aten.sym_size", "aten._assert_async", "aten._assert_scalar")


@dataclass(frozen=True)
class Graph:
    """A module's graph on one feed: placeholders of parameters and buffers by their names in the module."""

    program: torch.export.ExportedProgram
    feed: Mapping[str, torch.Tensor]
    stored: Mapping[str, str]  # placeholder -> parameter or buffer
    saved: frozenset[str]  # those that a state_dict holds


class _Named(torch.nn.Module):
    """Tensors in, tuple of the named outputs out."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.module = model.module
        self._model = model

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self._model.forward(dict(zip(self._model.input_names, given, strict=True)))
        return tuple(outputs[name] for name in self._model.output_names)


def small(model: Model, feed: Feed, rows: int = 2) -> dict[str, torch.Tensor]:
    """The first rows of a feed along the batch axis, as tensors."""
    cut = {name: feed[name][:rows] if model.axes[name][:1] == ("batch",) else feed[name] for name in model.input_names}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in cut.items()}


def trace(model: Model, feed: Feed) -> Graph:
    """The graph on two rows of `feed`. Raises ModelError when torch.export cannot follow the module."""
    given = small(model, feed)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(_Named(model), tuple(given.values()), strict=False)
        except Exception as problem:
            raise ModelError(
                one_line(f"pruning: model {model.name}: torch.export cannot trace it: {problem}", 300)
            ) from problem
    kinds = torch.export.graph_signature.InputKind
    stored = {
        spec.arg.name: str(spec.target).removeprefix(_PREFIX)
        for spec in program.graph_signature.input_specs
        if spec.kind in (kinds.PARAMETER, kinds.BUFFER)
    }
    saved = frozenset(model.module.state_dict())
    return Graph(program, given, stored, saved)


def coupling(model: Model, graph: Graph, *, outputs_shrink: bool = False) -> Coupling:
    """The groups of channels of a traced model; `outputs_shrink` lets the last dimension of its outputs lose some."""
    book = Book()
    values: dict[str, Any] = {}
    modules = dict(model.module.named_modules())
    tensors = dict([*model.module.named_parameters(remove_duplicate=False), *model.module.named_buffers()])
    known: dict[int, Dims] = {}
    for node in graph.program.graph.nodes:
        if node.op == "placeholder":
            name = graph.stored.get(node.name)
            if name is None or name not in graph.saved:
                values[node.name] = _fixed(node)
                continue
            tensor = tensors[name]
            if id(tensor) not in known:
                # A size of 1 is broadcast somewhere, or is all there is.
                known[id(tensor)] = tuple(book.fresh(size) if size > 1 else fixed(1) for size in tensor.shape)
            values[node.name] = known[id(tensor)]
            book.places.update({(name, dim): labels for dim, labels in enumerate(values[node.name])})
        elif node.op == "output":
            for value in (value for value in node.args[0] if isinstance(value, torch.fx.Node)):
                dims = values[value.name]
                book.outputs.append(dims)
                for labels in dims[: -1 if outputs_shrink else None]:
                    book.pin(labels, "they are an output of the model")
        elif node.op == "call_function" and node.target in PASSED:
            values[node.name] = PASSED[node.target](values[node.args[0].name], node.args[1])
        elif node.op == "call_function":
            values[node.name] = _call(book, node, values, modules, graph)
        else:
            values[node.name] = ()
    return couple(book)


def _call(book: Book, node: torch.fx.Node, values: dict[str, Any], modules: Mapping[str, Any], graph: Graph) -> Any:
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    made = node.meta.get("val")
    shape = tuple(made.shape) if isinstance(made, torch.Tensor) else ()

    def read(argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return values[argument.name]
        return [read(part) for part in argument] if isinstance(argument, (list, tuple)) else argument

    if schema is None:
        args = {str(index): read(value) for index, value in enumerate(node.args)}
        call = Call(str(target), args, {}, shape, "", node)
        return give_up(book, call, f"there is no rule for {call.name}")
    args, sources = {}, {}
    for place, argument in enumerate(schema.arguments):
        given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        args[argument.name] = read(given)
        if isinstance(given, torch.fx.Node):
            sources[argument.name] = given.name
    name = schema.name.replace("::", ".")
    call = Call(name, args, sources, shape, owner_of(node), node)
    if name in _HARMLESS:
        return ()
    rule = RULES.get(name)
    if rule is None and torch.Tag.pointwise in target.tags:
        rule = elementwise
    if rule is None:
        return give_up(book, call, f"there is no rule for {name}")
    out = rule(book, call)
    if isinstance(made, torch.Tensor) and tuple(map(len, out)) != shape:
        return give_up(book, call, f"the rule for {name} does not cover {node.name}")
    _note(book, call, modules, graph)
    return out


def _note(book: Book, call: Call, modules: Mapping[str, Any], graph: Graph) -> None:
    """Enter what a rule found at a Linear, a convolution or a BatchNorm, if that is a module whose weight it is."""
    meta = call.node.meta
    for key, ports in (("reads", book.readers), ("makes", book.writers)):
        if key not in meta:
            continue
        labels, placeholder, dim = meta[key]
        owner, _, attribute = graph.stored.get(placeholder, "").rpartition(".")
        part = modules.get(owner)
        if attribute == "weight" and isinstance(part, (torch.nn.Linear, _Conv, Conv1D)):
            ports.append(Port(owner, labels, (f"{owner}.weight" if owner else "weight", dim)))
        else:
            book.pin(labels, f"{owner or call.node.name} is no Linear or convolution module")
    if "scales" in meta and meta["scales"][1] in graph.stored:
        labels, placeholder = meta["scales"]
        book.norms.append((graph.stored[placeholder], labels))
    users = list(call.node.users)
    if "makes" in meta and len(users) == 1 and str(users[0].target) == "aten.batch_norm.default":
        norm = owner_of(users[0])
        if isinstance(getattr(modules.get(norm), "running_mean", None), torch.Tensor):
            book.following[call.module] = norm


def owner_of(node: torch.fx.Node) -> str:
    """The innermost module a node runs in, by its name in the model's module."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]).partition("@")[0] if stack else ""
    return path.removeprefix(_PREFIX) if path != _PREFIX.rstrip(".") else ""


def _fixed(node: torch.fx.Node) -> Dims:
    value = node.meta.get("val")
    return tuple(map(fixed, value.shape)) if isinstance(value, torch.Tensor) else ()
