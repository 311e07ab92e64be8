"""Channels that pruning emptied, cut out of the graph: zeros become smaller matrices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.passes.onnx import channels, files
from edgeredux.passes.onnx.channels import Array, Region
from edgeredux.passes.onnx.weights import give, initializer, stored
from edgeredux.seams import PassContext, Tolerance

Flags: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"


class CutChannels(ir.passes.InPlacePass):
    """Remove channels that are the same for every input, and channels that nobody reads.

    Given   h = Gelu(MatMul(x, w) + b); y = MatMul(h, v) + c     w[:, j] = 0, or v[j, :] = 0
    Result  the same without channel j of w, b and v; where w[:, j] = 0, c grows by Gelu(b[j]) * v[j, :]
    """

    def __init__(self) -> None:
        super().__init__()
        self.cut: dict[str, int] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        # What one round cuts can leave a channel of an earlier layer unread.
        cut = True
        while cut:
            cut = sum(self._cut(node) for graph in list(files.graphs(model)) for node in list(graph)) > 0
        if self.cut:
            common.RemoveUnusedNodesPass()(model)
            common.ShapeInferencePass()(model)
        return ir.passes.PassResult(model, bool(self.cut))

    def _cut(self, node: ir.Node) -> bool:
        if node.graph is None or not channels.is_linear(node):
            return False
        found = channels.region(node)
        if found is None:
            return False
        bias = channels.weight(node, 2) if len(node.inputs) > 2 else None
        table = channels.rows(node)
        start = np.zeros(table.shape[0], np.float32) if bias is None else bias
        constant = ~table.reshape(len(table), -1).any(axis=1)
        unread = np.ones(len(table), bool)
        for reader in found.readers:
            unread &= ~np.moveaxis(channels.rows(reader), 1, 0).reshape(len(table), -1).any(axis=1)
        if not (constant | unread).any():
            return False
        values = channels.evaluate(found, start)
        for reader, value in zip(found.readers, values, strict=True):
            constant &= np.isfinite(value)
            if reader.op_type == "Conv" and not _unpadded(reader):
                constant &= value == 0  # padding is zero, so another constant is no constant at the border
        dead = constant | unread
        if dead.all():
            dead[0] = False  # no runtime takes a matrix without columns
        if not dead.any():
            return False
        _apply(found, ~dead, dead & ~unread, values)
        self.cut[str(node.name)] = self.cut.get(str(node.name), 0) + int(dead.sum())
        return True


def _unpadded(conv: ir.Node) -> bool:
    auto = conv.attributes.get_string("auto_pad", "NOTSET")
    return auto == "VALID" or (auto == "NOTSET" and not any(conv.attributes.get_ints("pads", [0])))


def _apply(found: Region, kept: Flags, moved: Flags, values: list[Array]) -> None:
    """Cut the channels that are not `kept`; what the `moved` ones gave their readers goes into the readers' biases."""
    producer = found.producer
    give(producer, 1, stored(producer, channels.rows(producer)[kept]), "cut")
    if len(producer.inputs) > 2 and (bias := channels.weight(producer, 2)) is not None:
        give(producer, 2, bias[kept], "cut")
    for node, index in found.constants:
        array = files.constant(node.inputs[index])
        assert array is not None
        place = next(axis for axis, size in enumerate(array.shape) if size == len(kept))
        give(node, index, np.compress(kept, array, axis=place), "cut")
    for reader, value in zip(found.readers, values, strict=True):
        table = channels.rows(reader)
        gift = np.moveaxis(table, 1, 0).reshape(len(kept), table.shape[0], -1).sum(axis=2, dtype=np.float64)
        given = (np.where(moved, value, 0)[:, None] * gift).sum(axis=0).astype(np.float32)
        give(reader, 1, stored(reader, np.compress(kept, table, axis=1)), "cut")
        if given.any():
            _add(reader, given)
    for node in (producer, *found.nodes):
        node.outputs[0].shape = None


def _add(reader: ir.Node, given: Array) -> None:
    """Add `given` to what a linear operator puts out, in a bias that it has where it has one."""
    if reader.op_type != "MatMul":
        bias = channels.weight(reader, 2) if len(reader.inputs) > 2 else None
        give(reader, 2, given if bias is None else bias + given, "cut")
        return
    out = reader.outputs[0]
    uses = list(out.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not out.is_graph_output():
        index = 1 - uses[0].idx
        own = channels.weight(uses[0].node, index)
        if own is not None and own.shape == given.shape:
            give(uses[0].node, index, own + given, "cut")
            return
    graph = reader.graph
    assert graph is not None
    constant = initializer(graph, f"{out.name}_cut", given)
    node = ir.node("Add", [out, constant], name=f"{reader.name}_constant")
    node.outputs[0].name = f"{out.name}_constant"
    graph.insert_after(reader, node)
    ir.convenience.replace_all_uses_with(out, node.outputs[0], replace_graph_outputs=True)
    node.replace_input_with(0, out)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DeadChannels:
    """Output channels of MatMul, Gemm and Conv that are constant, or that no reader uses, leave the graph. Exact.

    A channel goes only when all between its producer and the linear operators that read it treats channels one by
    one (bias, scale, activation, a Gelu in pieces). Anything else, a graph output for instance, keeps its layer.
    """

    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("sums lose terms that are zero, in another order", atol=1e-4, rtol=1e-4), init=False
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The smaller graph; details `cut` counts channels by operator. Raises ArtifactError on an unreadable file."""
        model = files.read(source)
        common.NameFixPass()(model)
        step = CutChannels()
        result = step(model)
        if not result.modified:
            return Change("dead_channels", False, "declined: no channel is constant or unread")
        files.write(result.model, out)
        why = f"{sum(step.cut.values())} channels of {len(step.cut)} operators removed"
        return Change("dead_channels", True, why, {"cut": dict(sorted(step.cut.items()))})
