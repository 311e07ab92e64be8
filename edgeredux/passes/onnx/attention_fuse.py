"""A decoder layer's attention rewritten as one operator of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.attention_layer import AttentionLayer
from edgeredux.passes.onnx.attention_mask import Window
from edgeredux.passes.onnx.rotary import rotary_of
from edgeredux.passes.onnx.weights import initializer

DOMAIN = "com.microsoft"


@dataclass
class AttentionFuser:
    """Rewrites layers of one graph; what they share (lengths, padding, angles) is made once, at the graph's start.

    Padding is a bias of the scores and not the operator's own lengths: those know padding at the right of a first
    prompt only. `query_seqlens` lets a batch of several tokens follow a past, which the operator refuses without it.
    """

    graph: ir.Graph
    turned: int = 0  # rotations that became an operator
    _made: dict[Any, ir.Value] = field(default_factory=dict)

    def fuse(self, layer: AttentionLayer, window: Window | None) -> None:
        """Put GroupQueryAttention in the layer's place. Without a window, no mask was there: causal by itself."""
        at = layer.out
        query = self._flat(at, layer.query, layer.heads, layer.size)
        key = self._flat(at, layer.key, layer.kv_heads, layer.size)
        value = self._flat(at, layer.value, layer.kv_heads, layer.size)
        attributes = {"num_heads": layer.heads, "kv_num_heads": layer.kv_heads, "scale": layer.scale}
        if window is not None and window.size is not None:
            attributes["local_window_size"] = window.size
        if layer.softcap:
            attributes["softcap"] = layer.softcap
        lengths = [self._shared(name) for name in ("seqlens_k", "total_sequence_length")]
        more = [None, None, None, self._shared("attention_bias"), *[None] * 5, self._shared("query_seqlens")]
        inputs = [query, key, value, layer.past_key, layer.past_value, *lengths, *more]
        fused = ir.node(
            "GroupQueryAttention", inputs, attributes, domain=DOMAIN, num_outputs=3, name=f"attention_{layer.index}"
        )
        for made, stem in zip(fused.outputs, ("out", "key", "value"), strict=True):
            made.name = f"attention_{layer.index}_{stem}"
        self.graph.insert_before(at, fused)
        self._spread(layer, fused.outputs[0])
        replaced = (
            (layer.present_key, fused.outputs[1]),
            (layer.present_value, fused.outputs[2]),
        )
        for old, new in replaced:
            new.type, new.shape = old.type, old.shape
            name = old.name
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            old.name, new.name = f"{name}_before", name

    def _spread(self, layer: AttentionLayer, made: ir.Value) -> None:
        """Give `made` [batch, sequence, heads * size] to what reads the layer, most often as it is, else by heads."""
        apart = layer.out.outputs[0]
        assert apart.shape is not None
        made.type, made.shape = apart.type, ir.Shape([*apart.shape[:2], layer.heads * layer.size])
        for use in list(apart.uses()):
            joined = use.node.outputs[0]
            if use.node.op_type == "Reshape" and joined.shape == made.shape and not joined.is_graph_output():
                ir.convenience.replace_all_uses_with(joined, made)
                use.node.replace_input_with(0, None)
        if list(apart.uses()) or apart.is_graph_output():
            node = self._reshape(made, [0, 0, layer.heads, layer.size])
            self.graph.insert_before(layer.out, node)
            new = node.outputs[0]
            new.type, new.shape = apart.type, apart.shape
            ir.convenience.replace_all_uses_with(apart, new, replace_graph_outputs=True)

    def _flat(self, at: ir.Node, value: ir.Value, heads: int, size: int) -> ir.Value:
        """[batch, heads, sequence, size] as [batch, sequence, heads * size], its rotation one operator if known."""
        rotary = rotary_of(value)
        flat = self._unturned(at, value if rotary is None else rotary.x, heads, size)
        if rotary is None:
            return flat
        self.turned += 1
        attributes = {"num_heads": heads, "rotary_embedding_dim": rotary.turned} if rotary.turned < size else {}
        tables = [self._table(angles, rotary.turned) for angles in (rotary.cos, rotary.sin)]
        inputs = [flat, self._shared("rows"), *tables]
        turned = ir.node("RotaryEmbedding", inputs, attributes, domain=DOMAIN)
        turned.outputs[0].name = f"{value.name}_turned"
        self.graph.insert_before(at, turned)
        return turned.outputs[0]

    def _unturned(self, at: ir.Node, value: ir.Value, heads: int, size: int) -> ir.Value:
        made = value.producer()
        if made is not None and made.op_type == "Transpose" and list(made.attributes.get_ints("perm", ())) == _SWAP:
            rows = made.inputs[0]
        else:
            swap = ir.node("Transpose", [value], {"perm": _SWAP})
            swap.outputs[0].name = f"{value.name}_rows"
            self.graph.insert_before(at, swap)
            rows = swap.outputs[0]
        assert rows is not None
        joined = files.made_by(rows, "Reshape")
        whole = None if joined is None else joined.inputs[0]
        if whole is not None and rows.shape is not None and whole.shape == [*rows.shape[:2], heads * size]:
            return whole  # the product itself, before it was told apart by heads
        flat = self._reshape(rows, [0, 0, heads * size])
        flat.outputs[0].name = f"{value.name}_flat"
        self.graph.insert_before(at, flat)
        return flat.outputs[0]

    def _table(self, angles: ir.Value, turned: int) -> ir.Value:
        """The angles of this call's tokens, [batch * sequence, turned / 2]: no table of all positions is stored."""
        if ("table", angles) not in self._made:
            maker = angles.producer()
            assert maker is not None
            ends = [self._numbers(np.array([number], np.int64)) for number in (0, turned // 2, 2)]
            half = ir.node("Slice", [angles, *ends])
            half.outputs[0].name = f"{angles.name}_half"
            flat = self._reshape(half.outputs[0], [-1, turned // 2])
            flat.outputs[0].name = f"{angles.name}_table"
            self.graph.insert_after(maker, [half, flat])
            self._made["table", angles] = flat.outputs[0]
        return self._made["table", angles]

    def _shared(self, name: str) -> ir.Value:
        if name not in self._made:
            self._start()
        return self._made[name]

    def _start(self) -> None:
        """Everything that depends on the mask and the shapes alone, before the graph's first node."""
        inputs = {value.name: value for value in self.graph.inputs}
        tokens, padded = inputs["input_ids"], inputs["attention_mask"]
        whole = ir.DataType.INT32
        nodes: list[ir.Node] = []

        def add(kind: str, given: Sequence[ir.Value], name: str, **attributes: Any) -> ir.Value:
            node = ir.node(kind, given, attributes)
            node.outputs[0].name = f"decoder_{name}"
            nodes.append(node)
            return node.outputs[0]

        def number(array: Any, kind: Any = np.int64) -> ir.Value:
            return self._numbers(np.array(array, kind))

        batch = add("Shape", [tokens], "batch", start=0, end=1)
        sequence = add("Shape", [tokens], "sequence", start=1, end=2)
        total = add("Shape", [padded], "total", start=1, end=2)
        total32 = add("Cast", [total], "total32", to=whole)
        last = add("Sub", [total32, number([1], np.int32)], "last")
        fresh = add("Cast", [sequence], "sequence32", to=whole)
        self._made["seqlens_k"] = add("Expand", [last, batch], "seqlens_k")
        self._made["query_seqlens"] = add("Expand", [fresh, batch], "query_seqlens")
        self._made["total_sequence_length"] = add("Squeeze", [total32], "total_sequence_length")
        seen = add("Cast", [padded], "seen", to=ir.DataType.BOOL)
        hidden = number(np.finfo(np.float32).min, np.float32)
        rows = add("Where", [seen, number(0, np.float32), hidden], "padding")
        apart = add("Unsqueeze", [rows, number([1, 2])], "padding4")
        one = number([1])
        target = add("Concat", [one, one, sequence, one], "bias_shape", axis=0)
        self._made["attention_bias"] = add("Expand", [apart, target], "attention_bias")
        count = add("Squeeze", [add("Mul", [batch, sequence], "tokens")], "count")
        order = add("Range", [number(0), count, number(1)], "order")
        both = add("Concat", [batch, sequence], "both", axis=0)
        self._made["rows"] = add("Reshape", [order, both], "rows")
        first = next(iter(self.graph))
        self.graph.insert_before(first, nodes)

    def _reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Node:
        node = ir.node("Reshape", [value, self._numbers(np.array(shape, np.int64))])
        node.outputs[0].name = f"{value.name}_shaped"
        return node

    def _numbers(self, array: np.ndarray[Any, Any]) -> ir.Value:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            self._made[key] = initializer(self.graph, "decoder_constant", array)
        return self._made[key]


_SWAP = [0, 2, 1, 3]


def lengths_known(inputs: Mapping[str, ir.Value]) -> bool:
    """Whether the graph takes what lengths and padding are read from."""
    return "input_ids" in inputs and "attention_mask" in inputs
