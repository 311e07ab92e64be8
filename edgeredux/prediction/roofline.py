"""Time of a model from its amounts and a device's coefficients.

    t = base + ((sum of c_i * x_i)^p + (c_w * x_w)^p)^(1/p)

with x the amounts of `features`, w the weights that stream in, and p how well the hardware hides that. After Williams,
Waterman & Patterson 2009, "Roofline", where p is infinite. Coefficients are positive: a fit works on their logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeredux.prediction.features import Style

Array = np.ndarray[Any, Any]
STREAM = "weights"


def matrix(rows: Sequence[Mapping[str, float]], style: Style) -> Array:
    """Amounts as [models, terms], in the order of the style's terms."""
    return np.array([[row[term] for term in style.terms] for row in rows], dtype=float).reshape(len(rows), -1)


def times(amounts: Array, coefficients: Array, style: Style) -> tuple[Array, Array]:
    """Milliseconds [models] and their derivatives by the logarithm of each coefficient [models, terms]."""
    terms = list(style.terms)
    parts = amounts * coefficients
    base, stream, p = terms.index("base"), terms.index(STREAM) if STREAM in terms else None, style.overlap
    if stream is None or p == 1.0:
        return parts.sum(axis=1), parts
    inside = np.ones(len(terms), dtype=bool)
    inside[[base, stream]] = False
    arithmetic, streamed = parts[:, inside].sum(axis=1), parts[:, stream]
    together = (arithmetic**p + streamed**p) ** (1 / p)
    slope = parts.copy()
    slope[:, inside] *= ((arithmetic / together) ** (p - 1))[:, None]
    slope[:, stream] *= (streamed / together) ** (p - 1)
    return parts[:, base] + together, slope


def predict(amounts: Mapping[str, float], coefficients: Mapping[str, float], style: Style) -> float:
    """Milliseconds of one run; KeyError where the coefficients lack a term of the style."""
    values = np.array([coefficients[term] for term in style.terms])
    return float(times(matrix([amounts], style), values, style)[0][0])
