"""The quantised values of a QDQ graph, each of which can be given back its float value or 16 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.weights import initializer

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Restored: TypeAlias = Literal["uint16", "float"]
SWITCHES = "edgeredux_quantised"  # the probe's input: bool [pairs], True where the pair quantises

# Their constants are weights and biases: int8 and int32 whatever the activations are.
_WEIGHED = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Gather", "LayerNormalization"}


@dataclass(frozen=True)
class Pair:
    """A value that is quantised and brought back at once: an activation, or a constant that activations meet."""

    dequantise: ir.Node
    value: ir.Value | None  # the float activation; None for a constant
    name: str  # of the float value before quantisation

    @property
    def operator(self) -> str:
        """The operator that makes it; "input" or "constant" where none does."""
        if self.value is None:
            return "constant"
        node = self.value.producer()
        return "input" if node is None else f"{node.op_type} {node.name}"


def constants(model: ir.Model) -> dict[str, Array]:
    """The float constants of a graph by name, for the pairs of what the quantiser makes of it."""
    found = {}
    for value in model.graph.initializers.values():
        array = files.constant(value)
        if array is not None and array.dtype == np.float32:
            found[str(value.name)] = array
    return found


def pairs(model: ir.Model, floats: Mapping[str, Array]) -> list[Pair]:
    """The pairs of the main graph, in graph order. `floats`: the float graph's `constants`."""
    found = []
    for node in model.graph:
        entry = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if entry is None:
            continue
        inner = entry.producer()
        if inner is not None and inner.op_type == "QuantizeLinear" and files.constant(inner.inputs[0]) is None:
            value = inner.inputs[0]
            assert value is not None
            found.append(Pair(node, value, str(value.name).removesuffix("_QuantizeLinear_Input")))
        elif entry.is_initializer():
            name = str(entry.name).removesuffix("_quantized")
            if name in floats and not any(use.node.op_type in _WEIGHED for use in node.outputs[0].uses()):
                found.append(Pair(node, None, name))
    return found


def probe(model: ir.Model, floats: Mapping[str, Array], how: Restored) -> None:
    """Give every pair a switch, in place.

    Given   d = DequantizeLinear(QuantizeLinear(x)); y = Op(d)
    Result  y = Op(Where(switches[i], d, x)), or of x at 16 bits instead of x

    So one session shows any choice of quantised values.
    """
    found = pairs(model, floats)
    switches = ir.val(SWITCHES, dtype=ir.DataType.BOOL, shape=ir.Shape([len(found)]))
    model.graph.inputs.append(switches)
    for place, pair in enumerate(found):
        back = pair.dequantise.outputs[0]
        other, made = _other(model, pair, floats, how)
        index = initializer(model.graph, f"{pair.name}_place", np.array(place, np.int64))
        made.append(ir.node("Gather", [switches, index], {"axis": 0}))
        made.append(ir.node("Where", [made[-1].outputs[0], back, other]))
        for count, node in enumerate(made):
            node.name = f"{pair.name}_switch{count}"
            node.outputs[0].name = f"{pair.name}_switched{count}"
        chosen, name = made[-1].outputs[0], back.name
        chosen.dtype, chosen.shape = ir.DataType.FLOAT, back.shape
        if back.is_graph_output():
            back.name, chosen.name = f"{name}_quantised", name
        ir.convenience.replace_all_uses_with(back, chosen, replace_graph_outputs=True)
        made[-1].replace_input_with(1, back)
        model.graph.insert_after(pair.dequantise, made)
    model.opset_imports.setdefault("com.microsoft", 1)


def restore(model: ir.Model, floats: Mapping[str, Array], chosen: Sequence[int], how: Restored) -> None:
    """Give these of the `pairs`, counted as there, their float value or 16 bits, in place."""
    found = pairs(model, floats)
    for place in chosen:
        pair = found[place]
        back = pair.dequantise.outputs[0]
        if back.is_graph_output() and pair.value is not None and pair.value.is_graph_input():
            continue  # an output that is an input: nothing computes in between
        other, made = _other(model, pair, floats, how)
        for count, node in enumerate(made):
            node.name, node.outputs[0].name = f"{pair.name}_16_{count}", f"{pair.name}_16bits{count}"
        name = back.name
        if back.is_graph_output():
            back.name, other.name = f"{name}_quantised", name
        # ONNX Runtime's quantiser leaves some values without a type and a shape.
        other.dtype, other.shape = ir.DataType.FLOAT, other.shape if other.shape is not None else back.shape
        ir.convenience.replace_all_uses_with(back, other, replace_graph_outputs=True)
        model.graph.insert_after(pair.dequantise, made)
    if how == "uint16":
        model.opset_imports.setdefault("com.microsoft", 1)
    common.RemoveUnusedNodesPass()(model)


def _other(model: ir.Model, pair: Pair, floats: Mapping[str, Array], how: Restored) -> tuple[ir.Value, list[ir.Node]]:
    """What the pair's readers get instead, and the nodes that make it."""
    if how == "float":
        return pair.value or initializer(model.graph, f"{pair.name}_float", floats[pair.name]), []
    step, middle = _sixteen(pair)
    scale = initializer(model.graph, f"{pair.name}_scale16", np.array(step, np.float32))
    zero = initializer(model.graph, f"{pair.name}_zero16", np.array(middle, np.uint16))
    # ONNX knows 16 bits from opset 21 on, ONNX Runtime's own operators do in every one.
    domain = "" if model.opset_imports.get("", 0) >= 21 else "com.microsoft"
    if pair.value is None:
        codes = np.clip(np.rint(floats[pair.name] / step) + middle, 0, 65535).astype(np.uint16)
        first, made = initializer(model.graph, f"{pair.name}_codes16", codes), []
    else:
        made = [ir.node("QuantizeLinear", [pair.value, scale, zero], domain=domain)]
        first = made[0].outputs[0]
    made.append(ir.node("DequantizeLinear", [first, scale, zero], domain=domain))
    return made[-1].outputs[0], made


def _sixteen(pair: Pair) -> tuple[float, int]:
    """Scale and zero point of the pair's own range in 65,536 steps."""
    scale, zero = files.constant(pair.dequantise.inputs[1]), files.constant(pair.dequantise.inputs[2])
    assert scale is not None
    assert zero is not None
    step, middle = float(scale.reshape(())), int(zero.reshape(()))
    lowest, highest = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535)}[zero.dtype.name]
    low, high = (lowest - middle) * step, (highest - middle) * step
    fine = (high - low) / 65535
    return fine, round(-low / fine)
