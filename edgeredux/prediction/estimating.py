"""A file's latency and energy on a target, with the distribution of the errors that models left out of the fit had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeredux.errors import ArtifactError
from edgeredux.prediction import onnx_graph, roofline, tflite_graph
from edgeredux.prediction.features import STYLES, features
from edgeredux.prediction.operators import Operator, total_macs
from edgeredux.readings import AnyReading, Missing, Reading

_QUANTILE_10, _QUANTILE_90 = 1, 5  # places in a fit's `errors`: 5, 10, 25, 50, 75, 90, 95 %
_DYNAMIC = ("MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
_UNITS = {"latency": "ms", "energy": "mJ"}


@dataclass(frozen=True)
class Estimated:
    """Both quantities, and what they were computed from."""

    latency: AnyReading
    energy: AnyReading
    facts: Mapping[str, Any] = field(default_factory=dict)
    layers: Sequence[Mapping[str, Any]] = ()


def read(path: Path, shapes: Mapping[str, Sequence[int]], *, host: bool = False) -> list[Operator]:
    """The operators of an ONNX or TFLite file; for the host those that ONNX Runtime leaves of them."""
    if host and path.suffix == ".onnx":
        import tempfile

        from edgeredux import host_calibration

        with tempfile.TemporaryDirectory(prefix="edgeredux-host-") as folder:
            return host_calibration.optimised(path, Path(folder), shapes)
    return tflite_graph.operators(path) if path.suffix == ".tflite" else onnx_graph.operators(path, shapes)


def estimate(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    model: Mapping[str, Any] | None,
    *,
    threads: int = 1,
    runtime: str | None = None,
) -> Estimated:
    """The file on the target whose `latency_model` section is given; Missing where the file's work cannot be told."""
    if not model:
        reason = Missing("no published measurements of this device were read, so there is no model of it")
        return Estimated(reason, reason)
    try:
        operators = read(path, shapes, host=any(fit["style"] == "host" for fit in model["fits"]))
    except ArtifactError as problem:  # another runtime of the target may still take the file
        return Estimated(Missing(str(problem)), Missing(str(problem)))
    macs, format_ = total_macs(operators), numeric_format(operators)
    asked = runtime or ("tflite" if path.suffix == ".tflite" else "onnx")
    readings = {
        quantity: _reading(operators, macs, model, quantity, format_, asked, threads)
        for quantity in ("latency", "energy")
    }
    kinds = dict(Counter(operator.kind for operator in operators))
    weights = sum(operator.weights for operator in operators)
    facts = {"macs": macs, "weights": weights, "operators": kinds, "numeric_format": format_, "device": model["device"]}
    return Estimated(readings["latency"], readings["energy"], facts, tuple(layers(operators)))


def numeric_format(operators: Sequence[Operator]) -> str:
    """float, or w8a8 or w8a16 (8-bit weights, activations of 8 or 16) where most multiplications are in integers."""
    half = total_macs(operators) / 2
    wide = sum(operator.macs for operator in operators if operator.bits == 16)
    integer = sum(operator.macs for operator in operators if operator.integer)
    if integer <= half:
        return "float"
    return "w8a16" if wide > integer / 2 else "w8a8"


def layers(operators: Sequence[Operator]) -> list[dict[str, Any]]:
    """A line per operator that multiplies."""
    return [
        {"name": operator.name, "operator": operator.kind, "macs": operator.macs, "weights": operator.weights}
        for operator in operators
        if operator.macs
    ]


def choose(
    fits: Sequence[Mapping[str, Any]], quantity: str, format_: str, runtime: str, threads: int
) -> Mapping[str, Any] | Missing:
    """The fit for this quantity and format, of the runtime asked for if there is one, at the nearest thread count."""
    names = ("w8a8", "int8") if format_ == "w8a8" else (format_,)
    own = [fit for fit in fits if fit["quantity"] == quantity]
    if not own:
        return Missing(f"no published {quantity} of this device was read")
    # The host's fit has terms for integers of their own.
    right = [fit for fit in own if fit["dtype"] in names or fit.get("style") == "host"]
    if not right:
        there = ", ".join(sorted({fit["dtype"] for fit in own}))
        return Missing(f"the device's model has no {format_} fit. There are: {there}")
    best = [fit for fit in right if fit["runtime"] in (runtime, "any")] or right
    return min(best, key=lambda fit: (abs(fit["threads"] - threads), fit["median_error"]))


def _reading(
    operators: Sequence[Operator],
    macs: float,
    model: Mapping[str, Any],
    quantity: str,
    format_: str,
    runtime: str,
    threads: int,
) -> AnyReading:
    fit = choose(model["fits"], quantity, format_, runtime, threads)
    if isinstance(fit, Missing):
        return fit
    if fit["style"] == "npu" and any(operator.name in _DYNAMIC for operator in operators):
        return Missing("the file quantises activations as it runs, which this NPU does not; it takes static QDQ")
    style = STYLES[fit["style"]]
    value = roofline.predict(features(operators, style, fit["dtype"]), fit["coefficients"], style)
    low, high = fit["errors"][_QUANTILE_10], fit["errors"][_QUANTILE_90]
    how = (
        f"estimated, ±{fit['median_error']:.0%} (median of {fit['models']} left-out models, 90 % within "
        f"{fit['p90_error']:.0%}), {model['device']}, {fit['dtype']}, {fit['runtime']}, "
        f"{fit['threads']} thread{'s' if fit['threads'] > 1 else ''}; {model['source']}, {model['date']}"
    )
    smallest, largest = fit["macs"]
    if not smallest / 2 <= macs <= largest * 2:
        how += (
            f"; {macs / 1e6:.3g} million multiply-accumulates are outside the {smallest / 1e6:.3g} to "
            f"{largest / 1e6:.3g} million of the models it was fitted to"
        )
    # The measured value is estimate / (1 + error): the errors' quantiles change sides.
    return Reading(
        value, _UNITS[quantity], "estimated", n=fit["models"], p10=value / (1 + high), p90=value / (1 + low), how=how
    )
