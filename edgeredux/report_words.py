"""The words of the report's page: names of metrics, numbers as text, what a source means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from edgeredux.readings import AnyReading, Missing
from edgeredux.report import SHARES, Check, show_beside, show_number, show_value

METRIC_NAMES = {
    "latency_ms": "Latency",
    "throughput_per_s": "Throughput",
    "energy_mj": "Energy",
    "memory_mb": "Peak memory",
    "size_mb": "File size",
    "quality": "Quality",
    "agreement_top1": "Top-1 agreement",
    "latency_ratio": "Latency, reduced / dense",
    "energy_ratio": "Energy, reduced / dense",
    "memory_ratio": "Peak memory, reduced / dense",
    "size_ratio": "File size, reduced / dense",
    "quality_ratio": "Quality, reduced / dense",
    "perplexity": "Perplexity",
    "perplexity_ratio": "Perplexity, reduced / dense",
    "time_to_first_token_ms": "Time to first token",
    "prefill_tokens_per_s": "Prefill",
    "decode_tokens_per_s": "Decode",
    "cache_bytes_per_token": "Key-value cache per token",
    "weight_mb_per_token": "Weights read per token",
    "energy_mj_per_token": "Energy per token",
    "decode_limit_tokens_per_s": "Decode, what memory allows",
    "decode_share_of_limit": "Decode, share of what memory allows",
    "fallbacks": "Operators off the device",
}
FACT_NAMES = {
    "memory_used_bytes": "Memory used at the peak",
    "memory_moved_bytes": "Bytes moved per inference",
    "weight_bytes": "Weights",
    "size_bytes": "File, by what fills it",
    "operators": "Operators by kind",
    "macs": "multiply-accumulates",
}
SOURCE_WORDS = {
    "measured": "taken on the device itself, in this run",
    "simulated": "computed by the vendor's own compiler or library, not by the device",
    "estimated": "computed by a model whose coefficients have a source",
    "replayed": "measured earlier or elsewhere and read from a record",
    "missing": "nobody knows; the reason stands beside it, and a check on it fails",
}
# How the name of a check says its unit.
_UNITS = {"_ms": " ms", "_mj": " mJ", "_mb": " MB", "_per_s": " 1/s", "_ratio": "×"}


def metric_name(name: str) -> str:
    """A metric, ratio or check in words."""
    return METRIC_NAMES.get(name, name.replace("_", " "))


def show(value: AnyReading | None) -> str:
    """A reading as text; what is missing says so."""
    if value is None:
        return "–"
    if isinstance(value, Missing):
        return "missing"
    said = show_number(value)
    return said[:-1] + "×" if value.unit == "x" else said


def spread(value: AnyReading | None) -> str:
    """The 95 % interval, or p10 to p90, and n; empty where there is nothing to say."""
    if value is None or isinstance(value, Missing):
        return ""
    samples = f"n\u00a0=\u00a0{value.n:,}" if value.n > 1 else ""
    ends, what = (value.low, value.high), "95 %"
    if None in ends:
        ends, what = (value.p10, value.p90), "p10–p90"
    low, high = ends
    if low is None or high is None:
        return samples
    ends_said = unique((_end(low, value.unit), _end(high, value.unit)))
    return f"{what} " + "\u00a0– ".join(ends_said) + (f", {samples}" if samples else "")


def _end(value: float, unit: str) -> str:
    """An end of an interval: one digit more than the value itself for shares, where the ends lie close."""
    if unit not in SHARES:
        return show_value(value)
    return ">0.9999" if 0.99995 <= value < 1 else f"{value:.4f}"


def count(value: int | None) -> str:
    """A whole number with thousands marked."""
    return "–" if value is None else f"{value:,}"


def show_bytes(value: float | None) -> str:
    """Bytes in MB, kB or B (powers of ten)."""
    if value is None:
        return "–"
    if value >= 100_000:
        return f"{value / 1e6:,.2f} MB"
    return f"{value / 1e3:,.1f} kB" if value >= 1000 else f"{value:,.0f} B"


def show_fact(value: Any) -> str:
    """Any JSON value as text."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "not known"
        return f"{value:,.0f}" if value.is_integer() or abs(value) >= 10_000 else f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {show_fact(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(show_fact(item) for item in value) or "none"
    return str(value)


def change(before: float | None, after: float | None) -> str:
    """From before to after in per cent, signed; empty when there is nothing to compare or it stayed."""
    if before is None or after is None or before <= 0 or before == after:
        return ""
    return f"{100 * (after - before) / before:+.1f} %".replace("-", "−")


def beside(check: Check) -> str:
    """The reading of a check, with as many digits as tell it from the limit."""
    if isinstance(check.reading, Missing):
        return "missing"
    said = show_beside(check.reading, check.limit)
    return said[:-1] + "×" if check.reading.unit == "x" else said


def limit(check: Check) -> str:
    """What was asked for, with its unit."""
    unit = next((words for ending, words in _UNITS.items() if check.name.endswith(ending)), "")
    return f"{'≤' if check.direction == 'at_most' else '≥'} {check.limit:,g}{unit}"


def margin(check: Check) -> str:
    """How far the reading is from the limit, in per cent of the limit; empty where it is missing."""
    if isinstance(check.reading, Missing) or check.limit == 0:
        return ""
    away = 100 * (check.reading.value - check.limit) / abs(check.limit)
    return f"{abs(away):.1f} % {'above' if away > 0 else 'below'}" if away else "at the limit"


def link(url: Any) -> str:
    """The address if it is one of the web, else empty: nothing else may become a link."""
    said = str(url)
    return said if said.startswith(("https://", "http://")) else ""


def unique(values: Iterable[Any]) -> list[Any]:
    """The values in order, each once."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
