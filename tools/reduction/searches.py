"""How many zeros a search reaches within a limit on quality, by method and by how the zeros are shared out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeredux.model import Model
from edgeredux.pruning.until import PruneUntil
from edgeredux.seams import Feed
from reduction.pruned import context, count_zeros
from reduction.stsb import Judge

LIMIT = 0.9  # of the mean cosine to dense, on calibration sentences held out
HEAD = (
    f"{'method':10} {'allocation':11} {'zeros':>7} {'cosine held out':>15} {'dev Spearman / cosine':>21} "
    f"{'CPU s':>6}  trials"
)


def measure(
    dense: Model, calibration: Sequence[Feed], threads: int, judge: Judge, quick: bool
) -> Iterator[dict[str, Any]]:
    """One row a search, as it is done."""
    for method in ("wanda",) if quick else ("magnitude", "wanda", "sparsegpt"):
        for allocation in ("uniform", "sensitivity"):
            step = PruneUntil(limit=LIMIT, method=method, allocation=allocation, by=0.1, halvings=3)
            started = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                model, change = step.apply(dense, context(dense, calibration, threads, Path(folder)))
            seconds = time.process_time() - started
            search = change.details["search"]
            tried = [(trial["zeros"], trial["checks"][0]["reading"]["value"]) for trial in search["tried"]]
            zeros, weights = count_zeros(model)
            yield {
                "method": method,
                "allocation": allocation,
                "taken": search["taken"],
                "exact_zeros": zeros / weights,
                "held_out_cosine": dict(tried)[search["taken"]],
                **judge.score(model).to_json(),
                "cpu_seconds": round(seconds, 1),
                "tried": tried,
            }


def text(row: dict[str, Any]) -> str:
    """One line of the table."""
    dev = f"{row['spearman']:.4f} / {row['cosine']:.3f}"
    return (
        f"{row['method']:10} {row['allocation']:11} {100 * row['exact_zeros']:6.2f}% {row['held_out_cosine']:15.4f} "
        f"{dev:>21} {row['cpu_seconds']:6.1f}  {len(row['tried']) - 1}"
    )
