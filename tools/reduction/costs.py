"""What calibration costs, in plain forward passes over the calibration set; all kinds of run taken in turn."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgeredux.model import Model
from edgeredux.pruning.methods import SparseGPT
from edgeredux.pruning.unstructured import Prune
from edgeredux.seams import Feed
from reduction.pruned import Case, context

LIMIT = 2.3


@dataclass(frozen=True)
class Cost:
    """Medians over the rounds. `passes`: (whole - solves) / one plain forward pass of the same round."""

    method: str
    seconds: float
    solve_seconds: float
    passes: float
    passes_spread: tuple[float, float]  # least and most over the rounds
    forward_seconds: float

    @property
    def passed(self) -> bool:
        """Whether the median keeps the limit."""
        return self.passes <= LIMIT

    def to_json(self) -> dict[str, Any]:
        """All fields by name, with the verdict."""
        return {**vars(self), "limit": LIMIT, "passed": self.passed}


def measure(dense: Model, calibration: Sequence[Feed], threads: int, rounds: int) -> list[Cost]:
    """Wanda and SparseGPT at 50 % unstructured, on the calibration batches as they are."""
    taken: dict[str, list[tuple[float, float, float]]] = {"wanda": [], "sparsegpt": []}
    _forward(dense, calibration[:2])
    for _ in range(rounds):
        plain = _seconds(partial(_forward, dense, calibration))
        for method, samples in taken.items():
            with _solves() as solves:
                seconds = _seconds(partial(_prune, dense, method, calibration, threads))
            samples.append((seconds, sum(solves), plain))
    found = []
    for method, samples in taken.items():
        passes = [(seconds - solve) / plain for seconds, solve, plain in samples]
        middle = [statistics.median(column) for column in zip(*samples, strict=True)]
        spread = (min(passes), max(passes))
        found.append(Cost(method, middle[0], middle[1], statistics.median(passes), spread, middle[2]))
    return found


def _forward(model: Model, feeds: Sequence[Feed]) -> None:
    for feed in feeds:
        model.run(feed)


def _prune(dense: Model, method: str, calibration: Sequence[Feed], threads: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = context(dense, calibration, threads, Path(folder))
        Prune(**Case(0.5, "unstructured", method).options()).apply(dense, made)


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextmanager
def _solves() -> Iterator[list[float]]:
    """Seconds of every solve of SparseGPT inside: Cholesky factors, columns and refits, not the Gram matrices."""
    taken: list[float] = []
    solve = SparseGPT.solve

    def timed(self: SparseGPT, *given: Any) -> Any:
        started = time.perf_counter()
        made = solve(self, *given)
        taken.append(time.perf_counter() - started)
        return made

    SparseGPT.solve = timed  # type: ignore[method-assign,assignment]
    try:
        yield taken
    finally:
        SparseGPT.solve = solve  # type: ignore[method-assign]
