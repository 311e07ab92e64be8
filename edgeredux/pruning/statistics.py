"""What a method needs to know of a layer's inputs, summed over the calibration batches as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from edgeredux.errors import DataError
from edgeredux.pruning.methods import Needs, Statistics
from edgeredux.pruning.walk import Inputs

# Sums a tensor over processes that hold other batches of the calibration data each.
Reduce = Callable[[torch.Tensor], torch.Tensor]


class Collector:
    """Statistics of one layer after another; inputs seen just before (query, key, value) are not taken again."""

    def __init__(self, needs: Needs, reduce: Reduce = lambda value: value) -> None:
        self._needs = needs
        self._reduce = reduce
        self._last: tuple[Inputs, list[Statistics]] = ([], [])

    def take(self, inputs: Inputs) -> list[Statistics]:
        """One Statistics for each group of the layer's rows. `inputs`: one [groups, positions, inputs] a batch."""
        before, known = self._last
        if known and len(before) == len(inputs) and all(a is b for a, b in zip(before, inputs, strict=True)):
            return known
        self._last = ([], [])  # the inputs of the layer before are let go before more memory is asked for
        self._last = (inputs, self._sum(inputs))
        return self._last[1]

    def _sum(self, inputs: Inputs) -> list[Statistics]:
        groups, _, width = inputs[0].shape
        if sum(part.shape[1] for part in inputs) == 0:
            raise DataError("pruning: the calibration data holds nothing but padding")
        if self._needs == "norms":
            norms = torch.zeros(groups, width, dtype=torch.float64)
            for part in inputs:
                norms += part.float().square().sum(1)
            norms = self._reduce(norms)
            return [Statistics(norms=norms[group]) for group in range(groups)]
        gram = torch.zeros(groups, width, width)
        for part in inputs:
            gram.baddbmm_(part.float().mT, part.float())
        gram = self._reduce(gram)
        return [Statistics(norms=gram[group].diagonal(), gram=gram[group]) for group in range(groups)]


def relative_error(weight: torch.Tensor, pruned: torch.Tensor, known: Sequence[Statistics]) -> float | None:
    """||X (W - W')||^2 / ||X W||^2 over the calibration inputs; None where no Gram matrix was taken."""
    lost = whole = 0.0
    rows = len(weight) // len(known)
    for group, item in enumerate(known):
        if item.gram is None:
            return None
        w = weight[group * rows : (group + 1) * rows]
        error = w - pruned[group * rows : (group + 1) * rows]
        lost += float(((error @ item.gram) * error).sum())
        whole += float(((w @ item.gram) * w).sum())
    return max(0.0, lost) / whole if whole > 0 else None


def towards(weight: torch.Tensor, gram: torch.Tensor, cross: torch.Tensor, damping: float) -> torch.Tensor:
    """The weight that makes of the pruned model's inputs most nearly what `weight` makes of the dense model's.

    min ||X_dense W - X V||^2 + ridge * ||W - V||^2 over V, for `gram` = X^T X and `cross` = X_dense^T X; the ridge is
    `damping` times the mean diagonal of `gram`. Pruning V instead of W makes up for what the layers before have lost.
    """
    ridge = damping * gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype)
    solved: torch.Tensor = torch.linalg.solve(gram + ridge * eye, (weight @ (cross + ridge * eye)).T)
    return solved.T
