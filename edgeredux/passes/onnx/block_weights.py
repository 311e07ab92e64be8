"""Linear layers and embedding tables rewritten to read weights in blocks, a tied table stored once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.block_layers import Linear, as_linear, is_output_layer, is_same
from edgeredux.passes.onnx.block_rounding import rtn
from edgeredux.passes.onnx.blocks import Array, Bits, Blocks, vanishing
from edgeredux.passes.onnx.weights import initializer

DOMAIN = "com.microsoft"
Width: TypeAlias = Literal["same", "int8", "float"]
Quantise: TypeAlias = Callable[[ir.Node, Array, Bits], Blocks]  # the layer, its weight [outputs, inputs]


@dataclass
class BlockGraph:
    """Rewrites one graph.

    Given   y = MatMul(x, w); e = Gather(t, ids)
    Result  y = MatMulNBits(x, wq, ws); e = GatherBlockQuantized(tq, ids, ts)

    A table that a layer reads too, turned, is one block tensor for both: their layouts are the same. Where either of
    the two shall be float, both read the float table.
    """

    graph: ir.Graph
    bits: Bits
    block: int
    quantise: Quantise
    level: int  # MatMulNBits' accuracy_level: 0 is float arithmetic, 4 quantises the activations to int8
    embeddings: Width
    head: Width
    least: int
    exclude: frozenset[str]
    is_main: bool = True  # False for the body of an If, Loop or Scan, whose outputs are no outputs of the model
    layers: dict[str, str] = field(default_factory=dict)  # layer -> bits and method
    tables: dict[str, int] = field(default_factory=dict)
    tied: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)  # name -> why it stays float
    zeros: dict[str, int] = field(default_factory=lambda: {"weights": 0, "before": 0, "after": 0, "lost": 0})
    _floats: list[Linear] = field(default_factory=list)  # output layers that shall be float
    _made: dict[tuple[int, bool], tuple[Blocks, ir.Value, list[ir.Value]]] = field(default_factory=dict)

    def linears(self) -> Iterator[Linear]:
        """The layers to rewrite, in graph order; what stays and why goes to `left`."""
        for node in self.graph:
            if node.domain != "" or node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
                continue
            name, found = str(node.name), as_linear(node, is_head=self.is_main and is_output_layer(node))
            if found is None:
                continue
            if found.weight.size < self.least:
                self.left[name] = f"fewer than {self.least} weights"
            elif node.name in self.exclude:
                self.left[name] = "excluded"
            elif found.is_head and self.head == "float":
                self.left[name] = "the output layer, head: float"
                self._floats.append(found)
            elif not np.isfinite(found.weight).all():
                self.left[name] = "its weight is not finite"
            elif vanishing(found.weight, self.block):
                self.left[name] = "the values of a block are too small for a scale"
            else:
                yield found

    def rewrite(self) -> None:
        """Replace every layer and table that there is a form for."""
        layers = list(self.linears())
        for table in list(self._tables()):
            same = [linear for linear in layers if is_same(table, linear)]
            layers = [linear for linear in layers if linear not in same]
            why = self._stays(table)
            if why is not None:
                self.left[str(table.name)] = why
                self.left |= {str(linear.node.name): f"reads the table {table.name}: {why}" for linear in same}
                continue
            bits = max([self._bits(self.embeddings), *(self._bits_of(linear) for linear in same)])
            self._replace_table(table, bits)
            for linear in same:
                self._replace_linear(linear, bits, self._made[id(table), False])
            if same:
                self.tied.append(str(table.name))
        for linear in layers:
            self._replace_linear(linear, self._bits_of(linear), None)

    def _stays(self, table: ir.Value) -> str | None:
        """Why a table stays float."""
        if self.embeddings == "float":
            return "a table, embeddings: float"
        if any(is_same(table, head) for head in self._floats):
            return "the output layer reads it, head: float"
        return None

    def _bits_of(self, linear: Linear) -> Bits:
        return self._bits(self.head) if linear.is_head else self.bits

    def _bits(self, width: Width) -> Bits:
        return 8 if width == "int8" else self.bits

    def _tables(self) -> Iterator[ir.Value]:
        for value in list(self.graph.initializers.values()):
            table = files.constant(value)
            readers = self._row_readers(value)
            if table is None or not readers or table.dtype != np.float32 or table.ndim != 2 or table.size < self.least:
                continue
            if value.is_graph_output() or not np.isfinite(table).all() or vanishing(table, self.block):
                continue
            if any(str(node.name) in self.exclude for node in readers):
                self.left[str(value.name)] = "excluded"
            elif table.shape[1] % self.block:
                self.left[str(value.name)] = f"a table of width {table.shape[1]}, no multiple of block {self.block}"
            else:
                yield value

    def _row_readers(self, value: ir.Value) -> list[ir.Node]:
        """What gathers rows of it in this graph; a subgraph of it keeps reading the float table."""
        return [node for node, index in value.uses() if node.graph is self.graph and _gathers_rows(node, index)]

    def _blocks(
        self, key: ir.Value, turned: bool, make: Callable[[], Blocks], weight: Array
    ) -> tuple[Blocks, ir.Value, list[ir.Value]]:
        """The block tensors of a weight, stored once however many read it."""
        if (id(key), turned) not in self._made:
            made = make()
            stem = f"{key.name}_Q{made.bits}"
            stored = [initializer(self.graph, f"{key.name}_scales", made.scales)]
            if made.zeros is not None:
                stored.append(initializer(self.graph, f"{key.name}_zeros", made.zeros.reshape(-1)))
            self._made[id(key), turned] = made, initializer(self.graph, stem, made.packed), stored
            zero, now = weight == 0, made.weight() == 0
            self.zeros["weights"] += 1
            self.zeros["before"] += int(zero.sum())
            self.zeros["after"] += int(now.sum())
            self.zeros["lost"] += int((zero & ~now).sum())
        return self._made[id(key), turned]

    def _replace_table(self, value: ir.Value, bits: Bits) -> None:
        table = files.constant(value)
        assert table is not None
        # A table has no inputs to calibrate on and its operator no zeros of its own: rounding to the nearest.
        made, packed, (scales, *_) = self._blocks(value, False, partial(rtn, table, bits, self.block), table)
        flat = initializer(self.graph, f"{value.name}_rows", np.array([len(table), -1], np.int64))
        for node in self._row_readers(value):
            rows = ir.node("Reshape", [packed, flat], name=f"{node.name}_rows")
            rows.outputs[0].name = f"{node.outputs[0].name}_rows"
            attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": self.block, "bits": int(made.bits)}
            inputs = [rows.outputs[0], node.inputs[1], scales]
            gather = ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=f"{node.name}_Q{bits}")
            _put(self.graph, node, [rows, gather])
        self.tables[str(value.name)] = int(made.bits)

    def _replace_linear(self, found: Linear, bits: Bits, tied: tuple[Blocks, ir.Value, list[ir.Value]] | None) -> None:
        node, weight = found.node, found.weight
        make = partial(self.quantise, node, weight, bits)
        made, packed, stored = tied or self._blocks(found.source, found.turned, make, weight)
        attributes: dict[str, Any] = {"K": weight.shape[1], "N": weight.shape[0]}
        attributes |= {"bits": int(made.bits), "block_size": self.block}
        if self.level:
            attributes["accuracy_level"] = self.level
        nodes = [
            ir.node(
                "MatMulNBits",
                [node.inputs[0], packed, *stored],
                attributes,
                domain=DOMAIN,
                name=f"{node.name}_Q{made.bits}",
            )
        ]
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            nodes[0].outputs[0].name = f"{node.outputs[0].name}_product"
            nodes.append(ir.node("Add", [nodes[0].outputs[0], node.inputs[2]], name=f"{node.name}_bias"))
        _put(self.graph, node, nodes)
        self.layers[str(node.name)] = f"int{made.bits} {made.method}"


def _gathers_rows(node: ir.Node, index: int) -> bool:
    return node.op_type == "Gather" and node.domain == "" and index == 0 and node.attributes.get_int("axis", 0) == 0


def _put(graph: ir.Graph, node: ir.Node, made: list[ir.Node]) -> None:
    """Put nodes in a node's place; the last one's output takes its name, type and shape."""
    old, new = node.outputs[0], made[-1].outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [old], [new])
