"""Operators that compute each element of the output from the elements at the same place, by broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.evaluate import evaluate
from edgeredux.passes.onnx.structure.facts import MOST_ELEMENTS, Array, Flags, Known, aligned, needed_by
from edgeredux.passes.onnx.structure.rule import Rule, label
from edgeredux.passes.onnx.structure.state import State

OPERATORS = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf"),
    *("Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal"),
    *(
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tan",
        "Tanh",
    ),
    *("ThresholdedRelu", "Clip", "Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Max", "Min", "Sum", "Mean", "Where"),
    *("Not", "IsNaN", "And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod"),
)


class Elementwise(Rule):
    """Positions go through all of it together. f of a constant is a constant; zero times anything finite is zero."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        rank = len(state.dims(node.outputs[0]))
        facts = [None if value is None else state.known(value) for value in node.inputs]
        masks = [aligned(fact.mask, rank) for fact in facts if fact is not None]
        mask = np.logical_and.reduce(np.broadcast_arrays(*masks))
        values: Array | None = None
        if mask.any():
            arrays = [
                None if fact is None else np.where(fact.mask, fact.values, 1).astype(fact.values.dtype)
                for fact in facts
            ]
            if max(array.size for array in arrays if array is not None) <= MOST_ELEMENTS:
                values = evaluate(node, arrays)
        if values is None:
            mask, values = np.zeros((1,) * rank, bool), np.zeros((1,) * rank, np.float32)
        values = aligned(values, rank)
        if node.op_type == "Mul":
            zeros = np.logical_or(*np.broadcast_arrays(*(aligned(f.zeros(), rank) for f in facts if f is not None)))
            values = np.where(zeros, np.zeros((), values.dtype), values)
            mask = mask | zeros
        return [Known(mask, values)]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        wanted = state.wanted(node.outputs[0])
        found: list[Flags | None] = []
        for index, value in enumerate(node.inputs):
            flags = wanted
            if node.op_type == "Mul":
                other = node.inputs[1 - index]
                assert other is not None
                flags = wanted & ~aligned(state.known(other).zeros(), wanted.ndim)
            found.append(None if value is None else needed_by(flags, state.dims(value)))
        return found

    def agree(self, node: ir.Node, state: State) -> None:
        out = node.outputs[0]
        rank = len(state.dims(out))
        for value in node.inputs:
            if value is None:
                continue
            lead = rank - len(state.dims(value))
            for axis, size in enumerate(state.dims(value)):
                if size is None:
                    state.pin(out, [lead + axis], f"{label(node)} broadcasts a dynamic axis")
                elif size > 1:
                    state.tie(value, axis, out, lead + axis, f"{label(node)} has an axis of dynamic size there")


class Dropout(Elementwise):
    """What Dropout is in inference: its input. Not understood where its training mode is not constant."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        fact = state.known(node.inputs[0]) if node.inputs[0] is not None and _inference(node, state) else None
        return [fact, *[None] * (len(node.outputs) - 1)]

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        if not _inference(node, state):
            return Rule.needed(self, node, state)
        return [state.wanted(node.outputs[0]), *[None] * (len(node.inputs) - 1)]

    def agree(self, node: ir.Node, state: State) -> None:
        if not _inference(node, state):
            Rule.agree(self, node, state)
            return
        for axis in range(len(state.dims(node.outputs[0]))):
            state.tie(node.inputs[0], axis, node.outputs[0], axis, label(node))


def _inference(node: ir.Node, state: State) -> bool:
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    array = state.array(mode)
    return len(node.outputs) == 1 and (mode is None or (array is not None and not array.any()))
