"""Which few activations of a QDQ graph must not be quantised, by the error that each one was measured to make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Switches = np.ndarray[tuple[int], np.dtype[np.bool_]]
Cosine = Callable[[Switches], float]


@dataclass
class Search:
    """Restores activations, worst first, until the outputs are near enough to the float graph's.

    `cosine` runs the graph with the chosen activations quantised: mean cosine of its outputs to the float graph's. An
    activation's error is 1 - cosine with it alone quantised. They are restored in that order; the fewest that reach
    `limit` are found by bisection, and of these each that turns out not to be needed is quantised again, least first.
    `most`: how many may be restored.
    """

    cosine: Cosine
    count: int
    limit: float
    most: int
    before: float = 0.0  # all quantised
    after: float = 0.0
    errors: list[float] = field(default_factory=list)  # by activation; empty until one has to be restored
    order: list[int] = field(default_factory=list)  # worst first

    def run(self) -> list[int] | None:
        """The activations to restore, worst first; None where `most` are too few."""
        self.before = self.after = self.cosine(np.ones(self.count, np.bool_))
        if self.before >= self.limit:
            return []
        self._measure()
        if self._without(self.order[: self.most]) < self.limit:
            return None
        low, high = 0, self.most  # too few, enough
        while high - low > 1:
            middle = (low + high) // 2
            if self._without(self.order[:middle]) >= self.limit:
                high = middle
            else:
                low = middle
        chosen = self.order[:high]
        for place in reversed(self.order[:high]):
            fewer = [other for other in chosen if other != place]
            if self._without(fewer) >= self.limit:
                chosen = fewer
        self.after = self._without(chosen)
        return chosen

    def next(self, chosen: Sequence[int]) -> int | None:
        """The worst activation that is still quantised; None where `most` are restored.

        For a caller that sees more than `cosine` does, and whose limit is not reached by what `run` chose.
        """
        if len(chosen) >= self.most:
            return None
        if not self.order:
            self._measure()
        return next((place for place in self.order if place not in chosen), None)

    def _measure(self) -> None:
        for place in range(self.count):
            alone = np.zeros(self.count, np.bool_)
            alone[place] = True
            self.errors.append(1.0 - self.cosine(alone))
        self.order = sorted(range(self.count), key=lambda place: (-self.errors[place], place))

    def _without(self, restored: Sequence[int]) -> float:
        switches = np.ones(self.count, np.bool_)
        switches[list(restored)] = False
        return self.cosine(switches)
