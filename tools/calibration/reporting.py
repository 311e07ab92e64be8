"""The error table of every device, asked beside measured, and the same as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibration.judging import Judged, summary
from calibration.sources import Source

ASKED_RANK = 0.95
_ASKED_MODELS = 30  # AI Hub devices with fewer are shown, not asked


def table(source: Source, judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """One row per device (and thread count), all runtimes together, by numeric format and over all of them."""
    parts: dict[tuple[str, int, str], list[Judged]] = defaultdict(list)
    for item in judged:
        device, dtype, _, threads = item.key
        for name in (dtype, "all"):
            if name != "all" or dtype != "w8a16":
                parts[device, threads, name].append(item)
    rows = []
    for (device, threads, dtype), items in sorted(parts.items()):
        predicted = np.concatenate([item.predicted for item in items])
        measured = np.concatenate([item.measured for item in items])
        found = summary(predicted, measured)
        models = len({model for item in items for model in item.models})
        asked = source.name != "aihub" or (models >= _ASKED_MODELS and dtype != "w8a16")
        rows.append(
            {
                "source": source.name,
                "quantity": source.quantity,
                "device": device,
                "threads": threads,
                "dtype": dtype,
                "models": models,
                **found,
                "asked_median": source.asked_median if asked else None,
                "asked_rank": ASKED_RANK if asked else None,
            }
        )
    return rows


def reached(row: Mapping[str, Any]) -> str:
    """ok, or what is missed; '-' where nothing is asked."""
    if row["asked_median"] is None:
        return "-"
    missed = [] if row["median_error"] <= row["asked_median"] else ["median"]
    if row["points"] > 3 and not row["rank_correlation"] >= row["asked_rank"]:
        missed.append("rank")
    return "missed: " + ", ".join(missed) if missed else "ok"


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table as text."""
    out = [
        f"{'device':<58}{'threads':>8}{'format':>7}{'models':>7}{'points':>7}{'median':>8}{'asked':>7}{'p90':>7}{'rank':>7}{'asked':>6}"
    ]
    for row in rows:
        asked = "" if row["asked_median"] is None else f"{row['asked_median']:.0%}"
        rank = "" if row["asked_rank"] is None else f"{row['asked_rank']:.2f}"
        out.append(
            f"{row['device'][:57]:<58}{row['threads']:>8}{row['dtype']:>7}{row['models']:>7}{row['points']:>7}"
            f"{row['median_error']:>8.1%}{asked:>7}{row['p90_error']:>7.0%}{row['rank_correlation']:>7.3f}{rank:>6}"
            f"  {reached(row)}"
        )
    return out


def closing(rows: Sequence[Mapping[str, Any]], *, dtype: str = "all") -> str:
    """How many devices reach what is asked, over all formats together."""
    asked = [row for row in rows if row["asked_median"] is not None and row["dtype"] == dtype]
    median = sum(row["median_error"] <= row["asked_median"] for row in asked)
    rank = sum(row["rank_correlation"] >= row["asked_rank"] for row in asked)
    middle = float(np.median([row["median_error"] for row in asked])) if asked else float("nan")
    said = f"{dtype}: {median} of {len(asked)} devices within the asked median error (median {middle:.1%})"
    return f"{said}, {rank} at the asked rank correlation"
