"""Profiles of dense and reduced against a budget: readings, ratios, checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeredux.quality import Yardstick
from edgeredux.readings import AnyReading, Missing, Reading, percentile, ratio, weaker
from edgeredux.recipe import METRICS, Budget
from edgeredux.report import Check
from edgeredux.seams import DeviceProfile

# The six every profile has, known or not.
PROFILE_METRICS = ("latency_ms", "throughput_per_s", "energy_mj", "memory_mb", "size_mb", "quality")


def complete(
    readings: Mapping[str, AnyReading], size_bytes: int, quality: Mapping[str, AnyReading]
) -> dict[str, AnyReading]:
    """A profile with all six metrics; what nobody took is Missing with a reason."""
    size = Reading(size_bytes / 1e6, "MB", "measured", how="bytes of the model file on disk / 1e6")
    found: dict[str, AnyReading] = {**readings, "size_mb": size, **quality}
    for name in PROFILE_METRICS:
        found.setdefault(name, Missing("this runner does not take it"))
    return {name: found[name] for name in [*PROFILE_METRICS, *(n for n in found if n not in PROFILE_METRICS)]}


def ratios(
    dense: Mapping[str, AnyReading], reduced: Mapping[str, AnyReading], a: DeviceProfile, b: DeviceProfile
) -> dict[str, AnyReading]:
    """reduced / dense per metric; latency from the interleaved samples, paired round by round."""
    found: dict[str, AnyReading] = {}
    for name in ("latency", "energy", "memory", "size"):
        unit = {"latency": "latency_ms", "energy": "energy_mj", "memory": "memory_mb", "size": "size_mb"}[name]
        found[f"{name}_ratio"] = ratio(reduced[unit], dense[unit], f"reduced / dense {unit}")
    paired = _paired(dense["latency_ms"], reduced["latency_ms"], a.latency_samples, b.latency_samples)
    if paired is not None:
        found["latency_ratio"] = paired
    return found


def _paired(dense: AnyReading, reduced: AnyReading, a: Sequence[float], b: Sequence[float]) -> Reading | None:
    if not isinstance(dense, Reading) or not isinstance(reduced, Reading) or not a or len(a) != len(b):
        return None
    shares = [y / x for x, y in zip(a, b, strict=True) if x > 0]
    if not shares:
        return None
    return Reading(
        percentile(shares, 0.5),
        "x",
        weaker(dense.source, reduced.source),
        n=len(shares),
        p10=percentile(shares, 0.1),
        p90=percentile(shares, 0.9),
        how="median of reduced / dense, round by round of the same interleaved run",
        noisy=dense.noisy or reduced.noisy,
    )


def checks(
    budget: Budget,
    dense: Mapping[str, AnyReading],
    reduced: Mapping[str, AnyReading],
    shares: Mapping[str, AnyReading],
    fallbacks: AnyReading,
    yardstick: Yardstick,
) -> tuple[Check, ...]:
    """One check per budget line. What has no reading is missing, and so missed."""
    found = []
    for name, limit in budget.items():
        found.append(
            Check(name, float(limit), METRICS[name], _reading(name, dense, reduced, shares, fallbacks, yardstick))
        )
    return tuple(found)


def _reading(
    name: str,
    dense: Mapping[str, AnyReading],
    reduced: Mapping[str, AnyReading],
    shares: Mapping[str, AnyReading],
    fallbacks: AnyReading,
    yardstick: Yardstick,
) -> AnyReading:
    if name == "fallbacks":
        return fallbacks
    if name in shares:
        return shares[name]
    if name in ("perplexity", "perplexity_ratio") and not yardstick.lower_is_better:
        return Missing(f"the task is {yardstick.task}: it has no perplexity")
    if name in ("quality", "quality_ratio") and yardstick.lower_is_better:
        return Missing("the task is causal-lm: use perplexity or perplexity_ratio in the budget")
    if name in ("quality_ratio", "perplexity_ratio"):
        return ratio(reduced["quality"], dense["quality"], "reduced / dense quality")
    if name == "perplexity":
        return reduced["quality"]
    return reduced.get(name, Missing(f"{name}: this task has no such reading"))
