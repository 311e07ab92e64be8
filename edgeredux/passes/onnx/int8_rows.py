"""Embedding tables as int8 with one scale a row, in standard operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx import files


class Int8Rows(ir.passes.InPlacePass):
    """Store the float tables that Gather reads rows of as int8, symmetric, one scale a row.

    Given   y = Gather(table[V, H], ids)                       float
    Result  y = Mul(Cast(Gather(q[V, H], ids)), Gather(s[V, 1], ids))

    ONNX Runtime's own Gather quantisation has one scale for the whole table: the row with the largest value sets the
    step for all. A row of its own costs 4 bytes. Zeros stay zeros. Tables smaller than `least` elements, tables that
    anything else reads too (tied output layers), and other axes are left alone.
    """

    def __init__(self, least: int = 4096) -> None:
        super().__init__()
        self.least = least
        self.tables: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for graph in files.graphs(model):
            for value in list(graph.initializers.values()):
                if self._fits(value):
                    self._replace(graph, value)
        return ir.passes.PassResult(model, bool(self.tables))

    def _fits(self, value: ir.Value) -> bool:
        table, uses = files.constant(value), list(value.uses())
        return (
            table is not None
            and table.dtype == np.float32
            and table.ndim == 2
            and table.size >= self.least
            and bool(uses)
            and not value.is_graph_output()
            and bool(np.isfinite(table).all())
            and all(
                node.op_type == "Gather"
                and node.domain == ""
                and index == 0
                and node.attributes.get_int("axis", 0) == 0
                for node, index in uses
            )
        )

    def _replace(self, graph: ir.Graph, value: ir.Value) -> None:
        table, name = files.constant(value), value.name
        assert table is not None
        assert name is not None
        scales = np.abs(table).max(axis=1, keepdims=True) / np.float32(127)
        scales = np.where(scales == 0, np.float32(1), scales).astype(np.float32)
        quantised = np.clip(np.rint(table / scales), -127, 127).astype(np.int8)
        rows = _initializer(graph, f"{name}_row_int8", quantised)
        steps = _initializer(graph, f"{name}_row_scale", scales)
        for node in [use.node for use in value.uses()]:
            old, indices, owner = node.outputs[0], node.inputs[1], node.graph
            assert owner is not None
            made = [
                ir.node("Gather", [rows, indices], name=f"{node.name}_row_int8"),
                ir.node("Gather", [steps, indices], name=f"{node.name}_row_scale"),
            ]
            made.append(ir.node("Cast", [made[0].outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{node.name}_row_cast"))
            made.append(ir.node("Mul", [made[2].outputs[0], made[1].outputs[0]], name=f"{node.name}_row"))
            for part, new in zip(("row_int8", "row_scale", "row_cast", "row"), made, strict=True):
                new.outputs[0].name = f"{old.name}_{part}"
            ir.convenience.replace_nodes_and_values(owner, node, [node], made, [old], [made[-1].outputs[0]])
        del graph.initializers[name]
        self.tables.append(name)


def _initializer(graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value
