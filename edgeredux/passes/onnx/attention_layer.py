"""The attention of one decoder layer as exporters write it: products, mask, Softmax, key-value cache."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import onnx_ir as ir

from edgeredux.passes.onnx import files

_SWAP_HEADS, _SWAP_LAST = [0, 2, 1, 3], [0, 1, 3, 2]


@dataclass(frozen=True)
class AttentionLayer:
    """One layer. Queries are [batch, heads, sequence, size], keys and values have `kv_heads`, past ones as well."""

    index: int  # N of past_key_values.N
    heads: int
    kv_heads: int
    size: int
    scale: float
    softcap: float
    query: ir.Value
    key: ir.Value
    value: ir.Value
    past_key: ir.Value
    past_value: ir.Value
    present_key: ir.Value
    present_value: ir.Value
    mask: ir.Value | None
    out: ir.Node  # the transposition of the result to [batch, sequence, heads, size]


def is_attention(softmax: ir.Node) -> bool:
    """Whether this Softmax stands over scores of queries and keys that a past goes into."""
    return softmax.op_type == "Softmax" and softmax.domain == "" and isinstance(_parts(softmax), tuple)


def attention_of(softmax: ir.Node) -> AttentionLayer | str:
    """The layer of this Softmax, or why it is none that is known."""
    parts = _parts(softmax)
    if isinstance(parts, str):
        return parts
    product, mask, scale, softcap, weighted = parts
    keys = files.made_by(product.inputs[1], "Transpose")
    if keys is None or _perm(keys) != _SWAP_LAST:
        return "its keys are not transposed as [batch, heads, size, total]"
    query, values = product.inputs[0], weighted.inputs[1]
    key, value = _cached(keys.inputs[0]), _cached(values)
    if key is None or value is None:
        return "its keys or values are not a past and new ones, joined and repeated for the queries of a group"
    (past_key, new_key, present_key), (past_value, new_value, present_value) = key, value
    found = _NAME.fullmatch(str(past_key.name)), _NAME.fullmatch(str(past_value.name))
    if found[0] is None or found[1] is None or found[0][1] != found[1][1]:
        return "its past is none of the graph's past_key_values"
    shape, values_shape = past_key.shape, past_value.shape
    if query is None or query.shape is None or shape is None or values_shape is None:
        return "its shapes are not known"
    heads, kv_heads, size = query.shape[1], shape[1], shape[3]
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(size, int)):
        return "its number of heads is not fixed"
    if values_shape[1] != kv_heads or values_shape[3] != size:
        return "its values have other heads or another size than its keys"
    if heads % kv_heads:
        return f"{heads} query heads are no multiple of {kv_heads} key-value heads"
    if size % 8:
        return f"its heads have {size} numbers, and the fused operator takes multiples of 8"
    uses = list(weighted.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Transpose" or _perm(uses[0].node) != _SWAP_HEADS:
        return "its result is not transposed to [batch, sequence, heads, size]"
    return AttentionLayer(
        int(found[0][1]), heads, kv_heads, size, scale, softcap, query, new_key, new_value, past_key, past_value,
        present_key, present_value, mask, uses[0].node,
    )  # fmt: skip


_NAME = re.compile(r"past_key_values\.(\d+)\.(?:key|value)")


def _parts(softmax: ir.Node) -> tuple[ir.Node, ir.Value | None, float, float, ir.Node] | str:
    """The product of queries and keys, mask, scale and cap of the scores, the product with the values."""
    uses = list(softmax.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "MatMul" or uses[0].idx != 0:
        return "its weights go elsewhere than into one product with the values"
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return "its Softmax is not over the keys"
    scores, mask = softmax.inputs[0], None
    add = files.made_by(scores, "Add")
    if add is not None:
        for one, other in ((0, 1), (1, 0)):
            if isinstance(_scores(add.inputs[one]), tuple):
                scores, mask = add.inputs[one], add.inputs[other]
    found = _scores(scores)
    if found is None:
        return "its scores are no scaled product of queries and keys"
    return found[0], mask, found[1], found[2], uses[0].node


def _scores(value: ir.Value | None) -> tuple[ir.Node, float, float] | None:
    """MatMul, scale, cap of: scale * MatMul, or cap * Tanh(scale * MatMul / cap)."""
    cap, inner = 0.0, value
    outer = _scaled(value)
    if outer is not None and (tanh := files.made_by(outer[0], "Tanh")) is not None:
        below = _scaled(tanh.inputs[0])
        if below is None or not math.isclose(below[1] * outer[1], 1.0, rel_tol=1e-5):
            return None
        cap, inner = outer[1], below[0]
    scale = 1.0
    while inner is not None and (found := _scaled(inner)) is not None:
        inner, scale = found[0], scale * found[1]
    product = files.made_by(inner, "MatMul")
    return None if product is None else (product, scale, cap)


def _scaled(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """x and c of c * x, x * c or x / (1/c) with a constant number c."""
    for kind in ("Mul", "Div"):
        node = files.made_by(value, kind)
        for one, other in ((0, 1), (1, 0)) if kind == "Mul" else ((0, 1),):
            constant = None if node is None else files.constant(node.inputs[other])
            if node is not None and node.inputs[one] is not None and constant is not None and constant.size == 1:
                number = float(constant.item())
                entry = node.inputs[one]
                assert entry is not None
                return (entry, number) if kind == "Mul" else (entry, 1 / number)
    return None


def _cached(value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Past, new and both of: Concat(past, new) along the tokens, repeated or not for the queries of each group."""
    reshape = files.made_by(value, "Reshape")
    if reshape is not None:
        grown = files.made_by(reshape.inputs[0], "Expand")
        apart = files.made_by(grown.inputs[0] if grown is not None else reshape.inputs[0], "Unsqueeze")
        axes = None if apart is None else files.constant(apart.inputs[1])
        if apart is None or axes is None or axes.tolist() != [2]:
            return None
        value = apart.inputs[0]
    joined = files.made_by(value, "Concat")
    if joined is None or len(joined.inputs) != 2 or joined.attributes.get_int("axis", 0) not in (-2, 2):
        return None
    past, new = joined.inputs
    if past is None or new is None or not past.is_graph_input():
        return None
    return past, new, joined.outputs[0]


def _perm(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("perm", ()))
