"""Numbers that say where they come from, and the absence of a number that says why.

A `Reading` is measured, simulated, estimated or replayed. What nobody knows is `Missing(reason)`, never 0 or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

Source: TypeAlias = Literal["measured", "simulated", "estimated", "replayed"]
SOURCES: tuple[str, ...] = get_args(Source)
# A number derived from two readings is only as strong as the weaker one. Strongest first.
_STRENGTH: tuple[Source, ...] = ("measured", "replayed", "simulated", "estimated")


@dataclass(frozen=True)
class Reading:
    """One number with its unit, source, sample count and spread.

    `p10` and `p90` are percentiles over the `n` samples; `low` and `high` a 95 % confidence interval where one was
    computed. `how` says in words how the number came to be. Raises ValueError on a value that is no finite number.
    """

    value: float
    unit: str
    source: Source
    n: int = 1
    p10: float | None = None
    p90: float | None = None
    low: float | None = None
    high: float | None = None
    how: str = ""
    noisy: bool = False

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source {self.source!r}: allowed are {', '.join(SOURCES)}")
        for name in ("value", "p10", "p90", "low", "high"):
            number = getattr(self, name)
            if number is None and name != "value":
                continue
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise ValueError(f"{name}={number!r} is no finite number; say Missing(reason) instead")
        if self.n < 1:
            raise ValueError(f"n={self.n}: a reading needs at least one sample")

    def to_json(self) -> dict[str, Any]:
        """The reading as report.json holds it."""
        out: dict[str, Any] = {
            "value": float(self.value),
            "unit": self.unit,
            "source": self.source,
            "n": self.n,
            "p10": self.p10,
            "p90": self.p90,
            "how": self.how,
        }
        if self.low is not None or self.high is not None:
            out["ci95"] = [self.low, self.high]
        if self.noisy:
            out["noisy"] = True
        return out


@dataclass(frozen=True)
class Missing:
    """A number that nobody took, and why."""

    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise ValueError("Missing needs a reason")

    def to_json(self) -> dict[str, Any]:
        """The absence as report.json holds it."""
        return {"missing": self.reason}


AnyReading: TypeAlias = Reading | Missing


def from_json(value: Mapping[str, Any]) -> AnyReading:
    """The Reading or Missing that `to_json` wrote."""
    if "missing" in value:
        return Missing(str(value["missing"]))
    low, high = value.get("ci95", (None, None))
    return Reading(
        value=value["value"],
        unit=value["unit"],
        source=value["source"],
        n=value["n"],
        p10=value["p10"],
        p90=value["p90"],
        low=low,
        high=high,
        how=value["how"],
        noisy=bool(value.get("noisy", False)),
    )


def weaker(a: Source, b: Source) -> Source:
    """The source of a number derived from one of each."""
    return max(a, b, key=_STRENGTH.index)


def ratio(part: AnyReading, whole: AnyReading, how: str) -> AnyReading:
    """part / whole as a reading without spread; Missing when either is, or when `whole` is not positive."""
    for name, reading in (("numerator", part), ("denominator", whole)):
        if isinstance(reading, Missing):
            return Missing(f"{name} missing: {reading.reason}")
    assert isinstance(part, Reading)
    assert isinstance(whole, Reading)
    if part.unit != whole.unit:
        return Missing(f"units differ: {part.unit} and {whole.unit}")
    if whole.value <= 0:
        return Missing(f"the dense reading is {whole.value:g} {whole.unit}: no ratio can be formed")
    return Reading(
        part.value / whole.value,
        "x",
        weaker(part.source, whole.source),
        n=min(part.n, whole.n),
        how=how,
        noisy=part.noisy or whole.noisy,
    )


def percentile(samples: Sequence[float], share: float) -> float:
    """Linear-interpolated percentile of a non-empty sample, share in 0..1 (numpy's default definition)."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarise(samples: Sequence[float], unit: str, source: Source, how: str, *, noisy: bool = False) -> Reading:
    """Median of the samples with p10 and p90."""
    return Reading(
        percentile(samples, 0.5),
        unit,
        source,
        n=len(samples),
        p10=percentile(samples, 0.1),
        p90=percentile(samples, 0.9),
        how=how,
        noisy=noisy,
    )
