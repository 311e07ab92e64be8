"""Fits of a source's devices and the errors of what was left out of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.sources import Source
from calibration.tables import Row
from edgeredux.prediction import fitting, roofline
from edgeredux.prediction.features import STYLES, features
from edgeredux.prediction.operators import Operator, total_macs

Array = np.ndarray[Any, Any]
Key = tuple[str, str, str, int]  # device, numeric format, runtime, threads
_LEAST_MODELS = 3
_ANCHORS = 3  # models that a device left out may show
QUANTILES = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)


@dataclass(frozen=True)
class Judged:
    """One device's fit and, per model, what was measured and what a fit without this model says."""

    key: Key
    models: tuple[str, ...]
    measured: Array
    predicted: Array
    coefficients: Mapping[str, float]
    macs: tuple[float, float]

    @property
    def errors(self) -> Array:
        """estimate/measured - 1 of each model left out."""
        return np.asarray(self.predicted / self.measured - 1)


def groups(source: Source, rows: list[Row], graphs: Mapping[str, list[Operator]]) -> dict[Key, fitting.Measured]:
    """The rows by device, numeric format, runtime and threads."""
    style = STYLES[source.style]
    amounts: dict[tuple[str, str], Mapping[str, float]] = {}
    by_key: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        by_key[row.device, row.dtype, row.runtime, row.threads].append(row)
        if (row.model, row.dtype) not in amounts:
            amounts[row.model, row.dtype] = features(graphs[row.model], style, row.dtype)
    found = {}
    for key, own in by_key.items():
        if len(own) >= _LEAST_MODELS:
            matrix = roofline.matrix([amounts[row.model, row.dtype] for row in own], style)
            found[key] = fitting.Measured(matrix, np.array([row.value for row in own]), [row.twin for row in own])
    return found


def judge(
    source: Source,
    rows: list[Row],
    graphs: Mapping[str, list[Operator]],
    progress: Callable[[int, int], None] | None = None,
) -> list[Judged]:
    """Every device's fit with its left-out errors. Numeric formats are fitted apart, devices and runtimes together."""
    style = STYLES[source.style]
    models: dict[Key, list[str]] = defaultdict(list)
    for row in rows:
        models[row.device, row.dtype, row.runtime, row.threads].append(row.model)
    found = []
    every = groups(source, rows, graphs)
    for dtype in sorted({key[1] for key in every}):
        own = {key: group for key, group in every.items() if key[1] == dtype}
        spread = SPREADS.get(source.name, fitting.Spread())
        fitted = fitting.fit(own, style, spread)
        out = fitting.left_out(own, style, spread, progress)
        for key, group in own.items():
            names = tuple(models[key])
            sizes = [total_macs(graphs[name]) for name in names]
            values = np.exp(fitted.devices[key])
            found.append(
                Judged(
                    key,
                    names,
                    group.measured,
                    out[key],
                    {term: float(f"{value:.4g}") for term, value in zip(style.terms, values, strict=True)},
                    (min(sizes), max(sizes)),
                )
            )
    return found


# MLPerf Tiny has four models: what a device may have of its own is little but its speed.
SPREADS: dict[str, fitting.Spread] = {
    "tiny-latency": fitting.Spread(one=0.15, whole=3.0, arithmetic=0.15, common=1.0),
    "tiny-energy": fitting.Spread(one=0.15, whole=3.0, arithmetic=0.15, common=1.0),
}


def devices_out(source: Source, rows: list[Row], graphs: Mapping[str, list[Operator]]) -> dict[Key, Array]:
    """Errors on a device of which three models, spread over the sizes, were shown; the rest is its siblings'."""
    style, found = STYLES[source.style], {}
    every = groups(source, rows, graphs)
    spread = SPREADS.get(source.name, fitting.Spread())
    for dtype in sorted({key[1] for key in every}):
        own = {key: group for key, group in every.items() if key[1] == dtype}
        start = fitting.fit(own, style, spread)
        for device in sorted({key[0] for key in own}):
            shown, hidden = {}, {}
            for key, group in own.items():
                count = len(group.measured)
                if key[0] != device:
                    shown[key] = group
                elif count >= 2 * _ANCHORS:
                    order = np.argsort(group.amounts.sum(axis=1))
                    mask = np.zeros(count, dtype=bool)
                    mask[order[np.linspace(0, count - 1, _ANCHORS + 2).astype(int)[1:-1]]] = True
                    shown[key], hidden[key] = group.keep(mask), group.keep(~mask)
            fresh = fitting.Fitted(start.common, {k: v for k, v in start.devices.items() if k[0] != device})
            fitted = fitting.fit(shown, style, spread, fresh)
            for key, group in hidden.items():
                predicted = roofline.times(group.amounts, np.exp(fitted.devices[key]), style)[0]
                found[key] = predicted / group.measured - 1
    return found


def summary(predicted: Array, measured: Array) -> dict[str, float]:
    """Median and 90 % of the absolute relative errors, bias, rank correlation."""
    error = predicted / measured - 1
    return {
        "points": len(error),
        "median_error": float(np.median(np.abs(error))),
        "p90_error": float(np.quantile(np.abs(error), 0.9)),
        "bias": float(np.median(error)),
        "rank_correlation": fitting.rank_correlation(predicted, measured) if len(error) > 2 else float("nan"),
    }
