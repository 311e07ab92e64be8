"""The fitted block of a target file: from its last key `latency_model:` to the end, nothing else touched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibration.judging import QUANTILES, Judged, summary
from calibration.sources import Source

KEY = "latency_model:"


def block(parts: Sequence[tuple[Source, Sequence[Judged]]]) -> str:
    """YAML of one device's fits; several sources (latency, energy) of one device go into one block."""
    first = parts[0][0]
    device = parts[0][1][0].key[0]
    out = [
        f"{KEY}  # written by tools/calibrate: ms (energy: mJ) by the terms of edgeredux/prediction/features.py",
        f"  device: {json.dumps(device)}",
        f"  source: {json.dumps(first.said + '; errors are those of models left out of the fit')}",
        f"  url: {json.dumps(first.url)}",
        f"  date: {json.dumps(first.date)}",
        "  fits:",
    ]
    for source, judged in parts:
        for item in judged:
            out += _fit(source, item)
    return "\n".join(out) + "\n"


def _fit(source: Source, item: Judged) -> list[str]:
    _, dtype, runtime, threads = item.key
    said = summary(item.predicted, item.measured)
    quantiles = ", ".join(f"{value:.3f}" for value in np.quantile(item.errors, QUANTILES))
    terms = ", ".join(f"{term}: {value:.4g}" for term, value in item.coefficients.items())
    return [
        f"    - {{quantity: {source.quantity}, style: {source.style}, dtype: {dtype}, runtime: {runtime}, "
        f"threads: {threads},"
        f" models: {len(item.models)},",
        f"       median_error: {said['median_error']:.3f}, p90_error: {said['p90_error']:.3f}, rank_correlation: "
        f"{said['rank_correlation']:.3f}, errors: [{quantiles}], macs: [{item.macs[0]:.4g}, {item.macs[1]:.4g}],",
        f"       coefficients: {{{terms}}}}}",
    ]


def write(path: Path, text: str) -> bool:
    """Replace the block at the end of the file, or append it. Answers whether the file changed."""
    old = path.read_text(encoding="utf-8")
    place = old.find("\n" + KEY)
    kept = old if place < 0 else old[: place + 1]
    new = kept.rstrip("\n") + "\n" + text
    if new != old:
        path.write_text(new, encoding="utf-8")
    return new != old
