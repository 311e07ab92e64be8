"""Gelu as one operator where the exporter wrote it out."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import version_converter
from onnxscript.rewriter import pattern
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.errors import one_line
from edgeredux.passes.onnx import files
from edgeredux.seams import PassContext, Tolerance

_OPSET = 20  # the first with Gelu


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Gelu:
    """x * 0.5 * (1 + erf(x / sqrt(2))), in whatever order it was multiplied, as the operator Gelu of opset 20.

    Given   y = Mul(x, Mul(0.5, Add(Erf(Div(x, 1.4142135)), 1)))
    Result  y = Gelu(x)

    Five passes over a layer's widest tensor become one: ONNX Runtime knows two of the orders and not the one that
    torch.onnx writes. The file's opset becomes 20. Declines where no such expression is found, or the file's
    operators have no form in opset 20.
    """

    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("the same function; erf is computed by another kernel", atol=1e-3, rtol=1e-3), init=False
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The rewritten graph; details `gelus`. Raises ArtifactError on an unreadable file."""
        model = files.read(source)
        if model.graph.opset_imports.get("", 0) < _OPSET:
            try:
                version_converter.convert_version(model, _OPSET, fallback=False)
            except (ValueError, RuntimeError, NotImplementedError, ir.passes.PassError) as problem:
                return Change("gelu", False, one_line(f"declined: no form in opset {_OPSET}: {problem}", 300))
            if model.graph.opset_imports.get("", 0) < _OPSET:
                return Change("gelu", False, f"declined: some operator of this file has no form in opset {_OPSET}")
        found = sum(pattern.RewriteRuleSet([rule], commute=True).apply_to_model(model) for rule in _rules())
        if not found:
            return Change("gelu", False, "declined: no Gelu is written out in this graph")
        common.RemoveUnusedNodesPass()(model)
        common.ClearMetadataAndDocStringPass()(model)
        files.write(model, out)
        return Change("gelu", True, f"{found} written-out Gelus became one operator each", {"gelus": found})


def _rules() -> list[pattern.RewriteRule]:
    """Half times x times (1 + erf): which two are multiplied first, and x / sqrt(2) or x * sqrt(1/2)."""

    def inner(op: Any, x: Any, root: Any, one: Any, divide: bool) -> Any:
        return op.Add(op.Erf(op.Div(x, root) if divide else op.Mul(x, root)), one)

    def rule(order: str, divide: bool) -> pattern.RewriteRule:
        def given(op: Any, x: Any, root: Any, one: Any, half: Any) -> Any:
            grown = inner(op, x, root, one, divide)
            if order == "half with erf":
                return op.Mul(x, op.Mul(half, grown))
            if order == "half with x":
                return op.Mul(op.Mul(half, x), grown)
            return op.Mul(half, op.Mul(x, grown))

        def holds(context: Any, x: Any, root: Any, one: Any, half: Any, **_: Any) -> bool:
            wanted = math.sqrt(2) if divide else math.sqrt(0.5)
            return _is(root, wanted) and _is(one, 1.0) and _is(half, 0.5)

        return pattern.RewriteRule(given, lambda op, x, **_: op.Gelu(x), holds, name=f"gelu, {order}")

    orders = ("half with erf", "half with x", "half last")
    return [rule(order, divide) for order in orders for divide in (True, False)]


def _is(value: ir.Value, wanted: float) -> bool:
    """Whether the value is the constant `wanted`, to float16's precision, as a scalar."""
    array = files.constant(value)
    return (
        array is not None
        and array.size == 1
        and array.ndim <= 1
        and bool(np.isclose(float(array.item()), wanted, rtol=1e-3))
    )
