"""What each operator of a torch.export graph does to the labels of its inputs' dimensions (see coupling.py).

A rule gets the book and the call, and returns the dimensions of the output. An operator without a rule pins every
label it meets: its layers are left alone, never pruned wrongly.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from edgeredux.pruning.coupling import Attribute, Book, Dims, Labels

Rule: TypeAlias = Callable[[Book, "Call"], Any]
RULES: dict[str, Rule] = {}


@dataclass(frozen=True)
class Call:
    """One node: `args` by the operator's own argument names, tensors as Dims; `shape` of a tensor output."""

    name: str  # the operator, "aten.relu"
    args: dict[str, Any]
    sources: dict[str, str]  # argument -> node that made it
    shape: tuple[int, ...]
    module: str  # the innermost module it runs in
    node: torch.fx.Node

    @property
    def first(self) -> Dims:
        """The first argument."""
        return next(iter(self.args.values()))

    def dim(self, value: int, rank: int | None = None) -> int:
        """A dimension counted from the front."""
        return value % (len(self.first) if rank is None else rank)


def fixed(size: int) -> Labels:
    """A dimension whose positions must stay."""
    return np.zeros(size, dtype=np.int64)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators (overloads and in-place forms share it)."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def tensors(value: Any) -> list[Dims]:
    """All Dims in an argument."""
    if isinstance(value, tuple) and all(isinstance(part, np.ndarray) for part in value):
        return [value]
    return [dims for part in value for dims in tensors(part)] if isinstance(value, (list, tuple)) else []


def give_up(book: Book, call: Call, why: str) -> Any:
    """Pin every label of the call; the output's dimensions stay as they are."""
    for value in call.args.values():
        for dims in tensors(value):
            for labels in dims:
                book.pin(labels, why)
    made = call.node.meta.get("val")
    if isinstance(made, (list, tuple)):
        return [tuple(map(fixed, part.shape)) if isinstance(part, torch.Tensor) else () for part in made]
    return tuple(map(fixed, call.shape))


def pin_dims(book: Book, call: Call, dims: Dims, which: list[int]) -> None:
    for index in which:
        book.pin(dims[index], f"{call.name} works across them")


# Beside those that torch itself tags as pointwise.
_POINTWISE = """
    dropout dropout_ alpha_dropout feature_dropout feature_alpha_dropout contiguous detach detach_ to _to_copy type_as
    alias lift_fresh lift_fresh_copy hardswish hardswish_ mish_ hardtanh_ relu6 relu6_ silu_ celu_ selu_ rrelu float
    zeros_like ones_like full_like empty_like rand_like randn_like bernoulli fill_ zero_ copy_
"""


@rule(*[f"aten.{name}" for name in _POINTWISE.split()])
def elementwise(book: Book, call: Call) -> Dims:
    """Each position depends on the same position of the inputs alone; sizes of 1 are broadcast."""
    rank = max((len(dims) for value in call.args.values() for dims in tensors(value)), default=0)
    out: list[Labels] = [fixed(1)] * rank
    for value in call.args.values():
        for dims in tensors(value):
            for index, labels in enumerate(dims, rank - len(dims)):
                if len(out[index]) == 1 and len(labels) > 1:
                    out[index] = labels
                elif len(labels) == len(out[index]):
                    if out[index] is not labels and not np.array_equal(out[index], labels):
                        book.join(out[index], labels, f"joined with what must stay at {call.node.name}")
                    out[index] = np.where(out[index] == 0, labels, out[index])
    # An in-place form keeps the shape of its first argument.
    return tuple(out[-len(call.shape) :]) if call.shape else ()


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.conv_transpose1d", "aten.conv_transpose2d")
@rule("aten.conv_transpose3d")
def convolution(book: Book, call: Call) -> Dims:
    """Outputs are rows of the weight, inputs its columns; groups either go whole or all lose the same positions.

    Whole groups where there are at least as many groups as channels in one (depthwise: the channel with what it
    makes), else position j of every group together; either way the groups that are left are equally large.
    """
    x, weight, bias, groups = call.args["input"], call.args["weight"], call.args.get("bias"), call.args["groups"]
    axis = len(x) - (len(weight) - 1)
    transposed = "transpose" in call.name
    inputs, module = x[axis], call.module
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    outputs = weight[out_dim]
    if groups > 1:
        size, made = len(inputs) // groups, call.shape[axis] // groups
        parts = inputs.reshape(groups, size)
        if groups >= size:
            if transposed:
                book.join(inputs, weight[0], "a group of a convolution")
                outputs = np.repeat(parts[:, 0], made)
            else:
                book.join(np.repeat(parts[:, 0], made), outputs, f"its inputs at {call.node.name} must stay")
            book.join(np.repeat(parts[:, 0], size), inputs, f"its group at {call.node.name} must stay")
            book.attributes.append(Attribute(module, "groups", inputs, size))
        else:
            if transposed:
                book.join(np.tile(weight[0][:size], groups), weight[0], "a position of every group")
                outputs = np.tile(outputs, groups)
            else:
                book.join(np.tile(outputs[:made], groups), outputs, "a position of every group")
            columns = weight[0][:size] if transposed else weight[1]
            book.join(inputs, np.tile(columns, groups), f"its position in a group of {call.node.name} must stay")
            _reads(call, inputs, "weight", in_dim)
    else:
        book.join(inputs, weight[in_dim], f"what {call.node.name} reads must stay")
        _reads(call, inputs, "weight", in_dim)
    if bias is not None:
        book.join(bias[0], outputs, f"the bias of {call.node.name} must stay")
    _makes(call, outputs, "weight", out_dim)
    book.attributes += [Attribute(module, "in_channels", inputs), Attribute(module, "out_channels", outputs)]
    out = list(map(fixed, call.shape))
    out[axis] = outputs
    return tuple(out)


def _reads(call: Call, labels: Labels, weight: str, dim: int) -> None:
    """Channels with `labels` are mixed here; dimension `dim` of the argument `weight` belongs to them."""
    call.node.meta["reads"] = (labels, call.sources[weight], dim)


def _makes(call: Call, labels: Labels, weight: str, dim: int) -> None:
    call.node.meta["makes"] = (labels, call.sources[weight], dim)


@rule("aten.linear", "aten.addmm")
def linear(book: Book, call: Call) -> Dims:
    """Features are the last dimension; addmm is the Linear that GPT-2 calls Conv1D, its weight the other way round."""
    if call.name == "aten.addmm":
        name, in_dim = "mat2", 0
        x, bias = call.args["mat1"], call.args["self"]
    else:
        name, in_dim = "weight", 1
        x, bias = call.args["input"], call.args.get("bias")
    weight = call.args[name]
    book.join(x[-1], weight[in_dim], f"what {call.node.name} reads must stay")
    outputs = weight[1 - in_dim]
    if bias is not None:
        book.join(bias[-1], outputs, f"the bias of {call.node.name} must stay")
    for labels in x[:-1]:
        book.pin(labels, f"{call.node.name} works beside them")
    _reads(call, x[-1], name, in_dim)
    _makes(call, outputs, name, 1 - in_dim)
    names = ("in_features", "out_features") if in_dim else ("nx", "nf")
    book.attributes += [Attribute(call.module, names[0], x[-1]), Attribute(call.module, names[1], outputs)]
    return (*map(fixed, call.shape[:-1]), outputs)


@rule("aten.batch_norm", "aten.instance_norm")
def per_channel_norm(book: Book, call: Call) -> Dims:
    """Each channel by itself; weight, bias and running statistics go with it."""
    x = call.args["input"]
    for key in ("weight", "bias", "running_mean", "running_var"):
        if call.args.get(key) is not None:
            book.join(x[1], call.args[key][0], f"{key} of {call.node.name} must stay")
    for labels in x[2:]:
        book.pin(labels, f"{call.name} works across them")
    if "weight" in call.sources and call.name == "aten.batch_norm":
        call.node.meta["scales"] = (x[1], call.sources["weight"])
    book.attributes.append(Attribute(call.module, "num_features", x[1]))
    return x  # type: ignore[no-any-return]


@rule("aten.layer_norm", "aten.rms_norm")
def layer_norm(book: Book, call: Call) -> Dims:
    """Over the last dimension: features may go, and the statistics are then those of the features left."""
    x = call.args["input"]
    if len(call.args["normalized_shape"]) > 1:
        return give_up(book, call, f"{call.node.name} normalises over several dimensions")  # type: ignore[no-any-return]
    for key in ("weight", "bias"):
        if call.args.get(key) is not None:
            book.join(x[-1], call.args[key][0], f"{key} of {call.node.name} must stay")
    book.blended.append((call.node, x[-1]))
    book.attributes.append(Attribute(call.module, "normalized_shape", x[-1], in_tuple=True))
    return x  # type: ignore[no-any-return]


@rule("aten.group_norm")
def group_norm(book: Book, call: Call) -> Dims:
    """Whole groups (exact) where there are at least as many as channels in one, else a position of every group."""
    x, groups = call.args["input"], call.args["num_groups"]
    size = len(x[1]) // groups
    parts = x[1].reshape(groups, size)
    if groups >= size:
        book.join(np.repeat(parts[:, 0], size), x[1], f"its group in {call.node.name} must stay")
        book.attributes.append(Attribute(call.module, "num_groups", x[1], size))
    else:
        book.join(np.tile(parts[0], groups), x[1], f"its position in a group of {call.node.name} must stay")
        book.blended.append((call.node, x[1]))
    for key in ("weight", "bias"):
        if call.args.get(key) is not None:
            book.join(x[1], call.args[key][0], f"{key} of {call.node.name} must stay")
    pin_dims(book, call, x, list(range(2, len(x))))
    book.attributes.append(Attribute(call.module, "num_channels", x[1]))
    return x  # type: ignore[no-any-return]


@rule("aten.prelu")
def prelu(book: Book, call: Call) -> Dims:
    """One slope for all, or one a channel."""
    x, weight = call.args["self"], call.args["weight"]
    if len(weight[0]) > 1:
        book.join(x[1], weight[0], f"the slope at {call.node.name} must stay")
        book.attributes.append(Attribute(call.module, "num_parameters", x[1]))
    return x  # type: ignore[no-any-return]


def _spatial(count: int) -> Rule:
    def window(book: Book, call: Call) -> Any:
        x = call.first
        pin_dims(book, call, x, list(range(len(x) - count, len(x))))
        made = call.node.meta["val"]
        outs = [
            (*x[:-count], *map(fixed, part.shape[-count:])) for part in (made if isinstance(made, tuple) else (made,))
        ]
        return outs if isinstance(made, tuple) else outs[0]

    return window


for _rank in (1, 2, 3):
    for _kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "max_pool_with_indices"):
        _stem, _, _rest = _kind.partition("pool")
        RULES[f"aten.{_stem}pool{_rank}d{_rest}"] = _spatial(_rank)
    for _kind in ("reflection_pad", "replication_pad"):
        RULES[f"aten.{_kind}{_rank}d"] = _spatial(_rank)
for _kind in ("nearest2d", "bilinear2d", "bicubic2d", "nearest_exact2d"):
    RULES[f"aten.upsample_{_kind}"] = _spatial(2)
for _kind in ("nearest1d", "linear1d", "nearest_exact1d"):
    RULES[f"aten.upsample_{_kind}"] = _spatial(1)
for _kind in ("nearest3d", "trilinear3d"):
    RULES[f"aten.upsample_{_kind}"] = _spatial(3)


@rule("aten.mean", "aten.sum", "aten.amax", "aten.amin", "aten.max", "aten.min", "aten.var", "aten.std")
@rule("aten.argmax", "aten.linalg_vector_norm", "aten.logsumexp", "aten.prod", "aten.any", "aten.all")
def reduction(book: Book, call: Call) -> Any:
    """Dimensions reduced over stay whole: a mean of fewer channels would be another mean, but for an RMSNorm's."""
    if "other" in call.args:  # max and min of two tensors
        return elementwise(book, call)
    x, dim = call.first, call.args.get("dim")
    over = (
        list(range(len(x))) if dim in (None, []) else [call.dim(d) for d in (dim if isinstance(dim, list) else [dim])]
    )
    keep = bool(call.args.get("keepdim", False))
    if _root_mean_square(call, over) and keep:
        book.blended.append((call.node, x[-1]))
        return (*x[:-1], fixed(1))
    pin_dims(book, call, x, over)
    out = tuple(fixed(1) if index in over else labels for index, labels in enumerate(x) if keep or index not in over)
    made = call.node.meta["val"]
    return [out] * len(made) if isinstance(made, (tuple, list)) else out


def _root_mean_square(call: Call, over: list[int]) -> bool:
    """A mean of squares over the last dimension: how most RMSNorms are written out, and to be treated as one."""
    if call.name != "aten.mean" or over != [len(call.first) - 1]:
        return False
    source = call.node.args[0]
    if not isinstance(source, torch.fx.Node) or source.op != "call_function":
        return False
    name = str(source.target)
    squared = name.startswith("aten.pow.") and bool(source.args[1] == 2)
    return squared or name.startswith("aten.square.") or (name.startswith("aten.mul.") and len({*source.args}) == 1)


@rule("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten.cumsum", "aten.flip", "aten.roll")
@rule("aten.glu_backward", "aten.sort", "aten.softmin")
def along_one(book: Book, call: Call) -> Any:
    """Same shape; positions along `dim` depend on each other."""
    over = call.args.get("dim", call.args.get("dims"))
    if over in (None, []):
        return give_up(book, call, f"{call.name} works across them")
    pin_dims(book, call, call.first, [call.dim(d) for d in (over if isinstance(over, list) else [over])])
    made = call.node.meta["val"]
    return [call.first] * len(made) if isinstance(made, (tuple, list)) else call.first


@rule("aten.embedding")
def embedding(book: Book, call: Call) -> Dims:
    """Rows are chosen by number, so they stay; features are the table's columns."""
    weight = call.args["weight"]
    book.pin(weight[0], "rows of an embedding table")
    book.attributes.append(Attribute(call.module, "embedding_dim", weight[1]))
    return (*map(fixed, call.shape[:-1]), weight[1])


def getitem(value: Any, index: int) -> Any:
    """One of several outputs."""
    return value[index]


PASSED = {operator.getitem: getitem}
