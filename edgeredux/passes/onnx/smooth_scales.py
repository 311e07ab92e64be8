"""SmoothQuant: outliers of activations moved into the weights that read them, before either is quantised."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.errors import DataError
from edgeredux.passes.onnx import channels, files
from edgeredux.passes.onnx.observe import Array, observe
from edgeredux.passes.onnx.smooth_norms import Norm, norms, vector
from edgeredux.passes.onnx.weights import initializer, stored, transposed
from edgeredux.seams import Feed, PassContext, Tolerance


def scales(activations: Array, weights: Array, alpha: float) -> Array:
    """SmoothQuant (Xiao et al. 2023, arXiv 2211.10438) eq. 4: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), [width].

    `activations`: max|X_j|; `weights`: max|W_j| over all readers. A channel that is zero on either side keeps 1.
    """
    live = (activations > 0) & (weights > 0)
    found = np.ones(len(activations))
    found[live] = activations[live].astype(np.float64) ** alpha / weights[live].astype(np.float64) ** (1 - alpha)
    return found


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SmoothScales:
    """Each channel of a normalised value divided by s, in the gain, and multiplied by s in the weights. Exact.

    Given   n = LayerNormalization(x, gain, shift); y = MatMul(n, w)
    Result  n = LayerNormalization(x, gain / s, shift / s); y = MatMul(n, diag(s) w)

    s_j = max|n_j|^alpha / max|w_j|^(1 - alpha), from the calibration inputs, so that the few channels of large values
    do not set the step of all when int8_dynamic or int8_static quantises n next. LayerNormalization, RMSNormalization
    and both written out. Where others read n too, such as the residual sum of an encoder that normalises after it,
    `others`: multiply gives them n * s back by one Mul, skip leaves the value alone. Zeros of weights stay zeros.
    Declines where no such value is read by a layer.
    """

    alpha: float = Field(default=0.5, ge=0, le=1)
    others: bool = True
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("the same function; gain and weight are rounded once more", atol=1e-3, rtol=1e-3), init=False
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The rescaled graph; details `norms`: by value, its readers and the spread of its channels (largest over
        median of max|n_j|, None where the median is 0) before and after. Raises ArtifactError, DataError without
        calibration inputs.
        """
        model = files.read(source)
        common.NameFixPass()(model)
        found = [norm for norm in norms(model.graph) if self.others or not norm.others]
        if not found:
            return Change("smooth_scales", False, "declined: no normalised value is read by MatMul or Gemm alone")
        if not context.calibration:
            raise DataError("pass smooth_scales: there are no calibration feeds")
        seen = _maxima(model, found, context.calibration, context.scratch)
        told: dict[str, Any] = {}
        for norm in found:
            name = str(norm.value.name)
            told[name] = self._apply(model.graph, norm, seen[name])
        common.RemoveUnusedNodesPass()(model)
        files.write(model, out)
        why = f"{len(told)} normalised values rescaled"
        known = [item for item in told.values() if item["spread_before"] is not None]
        if known:
            worst = max(known, key=lambda item: float(item["spread_before"]))
            why += f", largest spread {worst['spread_before']:.1f} now {worst['spread_after']:.1f}"
        return Change("smooth_scales", True, why, {"norms": told})

    def _apply(self, graph: ir.Graph, norm: Norm, largest: Array) -> dict[str, Any]:
        tables = [channels.rows(node) for node in norm.linears]
        s = scales(largest, np.max([np.abs(table).max(axis=0) for table in tables], axis=0), self.alpha)
        for node, index in norm.scaled:
            made = (vector(node, index) / s).astype(np.float32)
            node.replace_input_with(index, initializer(graph, f"{norm.value.name}_smooth", made))
        weights: dict[tuple[int, bool], ir.Value] = {}  # one that several read is rescaled once
        for node, table in zip(norm.linears, tables, strict=True):
            old = node.inputs[1]
            assert old is not None
            key = id(old), transposed(node)
            if key not in weights:
                weights[key] = initializer(graph, f"{old.name}_smooth", stored(node, (table * s).astype(np.float32)))
            node.replace_input_with(1, weights[key])
        if norm.others:
            back = initializer(graph, f"{norm.value.name}_back", s.astype(np.float32))
            mul = ir.node("Mul", [norm.value, back], name=f"{norm.value.name}_back")
            mul.outputs[0].name = f"{norm.value.name}_unscaled"
            mul.outputs[0].type, mul.outputs[0].shape = norm.value.type, norm.value.shape
            producer = norm.value.producer()
            assert producer is not None
            graph.insert_after(producer, mul)
            for node, index in norm.others:
                node.replace_input_with(index, mul.outputs[0])
        return {
            "readers": [str(node.name) for node in norm.linears],
            "others": len(norm.others),
            "spread_before": _spread(largest),
            "spread_after": _spread(largest / s),
        }


def _maxima(model: ir.Model, found: Sequence[Norm], feeds: Sequence[Feed], scratch: Path) -> dict[str, Array]:
    """max|n_j| [width] of each norm's value over all positions of all feeds, padding left out."""
    seen: dict[str, Array] = {}

    def see(name: str, array: Array) -> None:
        top = np.abs(array.reshape(-1, array.shape[-1])).max(axis=0)
        seen[name] = np.maximum(seen.get(name, 0.0), top)

    observe(model, [norm.value for norm in found], feeds, scratch, see)
    return seen


def _spread(largest: Array) -> float | None:
    middle = float(np.median(largest))
    return float(largest.max()) / middle if middle else None
