"""What every operator family says about itself; the operator that nobody knows is the default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.facts import Flags, Known

if TYPE_CHECKING:
    from edgeredux.passes.onnx.structure.state import State


class Rule:
    """One operator family. This base is the operator that is not understood: it needs all and lets nothing go."""

    def known(self, node: ir.Node, state: State) -> Sequence[Known | None]:
        """By output, what is the same in every run; None: nothing. Only asked where an input is known somewhere."""
        return [None] * len(node.outputs)

    def needed(self, node: ir.Node, state: State) -> Sequence[Flags | None]:
        """By input, which elements the wanted elements of the outputs read; None: all."""
        return [None] * len(node.inputs)

    def agree(self, node: ir.Node, state: State) -> None:
        """Let positions of inputs and outputs go only together, and only where what stays is computed as before."""
        state.pin_all(node, f"{label(node)} is not taken apart")

    def rewrite(self, node: ir.Node, state: State) -> None:
        """Fit attributes and constants that say sizes to the cut; initializers with cuts of their own are cut later."""


def label(node: ir.Node) -> str:
    """How messages call a node."""
    return f"{node.op_type} {node.name or node.outputs[0].name}"


def given(node: ir.Node) -> ir.Value:
    """The first input."""
    value = node.inputs[0]
    assert value is not None
    return value


def everything(rank: int) -> Flags:
    """All elements of a tensor."""
    return np.ones((1,) * rank, bool)


def nothing(rank: int) -> Flags:
    """No element of a tensor."""
    return np.zeros((1,) * rank, bool)
