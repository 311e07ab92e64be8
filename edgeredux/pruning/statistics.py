"""What a method needs to know of a layer's inputs, summed over the calibration batches as they come."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch

from edgeredux.errors import DataError, ModelError
from edgeredux.processes import ALONE, Processes
from edgeredux.pruning.methods import Needs, Statistics
from edgeredux.pruning.walk import Inputs


class Collector:
    """Statistics of one layer after another; inputs seen just before (query, key, value) are not taken again."""

    def __init__(self, needs: Needs, processes: Processes = ALONE) -> None:
        """`processes` hold other batches of the calibration data each; all of them must take the same layers."""
        self._needs = needs
        self._processes = processes
        self._last: tuple[Inputs, list[Statistics]] = ([], [])

    def take(self, inputs: Inputs) -> list[Statistics]:
        """One Statistics for each group of the layer's rows. `inputs`: one [groups, positions, inputs] a batch."""
        before, known = self._last
        if known and len(before) == len(inputs) and all(a is b for a, b in zip(before, inputs, strict=True)):
            return known
        self._last = ([], [])  # the inputs of the layer before are let go before more memory is asked for
        self._last = (inputs, self._sum(inputs))
        return self._last[1]

    def positions(self, inputs: Inputs, layer: str) -> int:
        """How many positions the batches of all processes hold; said by each of them before `take`.

        Raises ModelError where the processes are not at the same layer (experts that only some batches reach).
        """
        mine = sum(part.shape[1] for part in inputs)
        place = zlib.crc32(layer.encode())
        count, places = self._processes.total(torch.tensor([mine, place], dtype=torch.int64)).tolist()
        if places != place * self._processes.count:
            raise ModelError(
                f"pruning: not every process' calibration data reaches {layer}; exclude it or use one process"
            )
        return int(count)

    def cross(self, dense: Inputs, pruned: Inputs) -> list[torch.Tensor]:
        """Sum of x_dense x^T over all positions, [inputs, inputs] for each group of the layer's rows."""
        groups, _, width = pruned[0].shape
        found = torch.zeros(groups, width, width)
        for a, b in zip(dense, pruned, strict=True):
            found.baddbmm_(a.float().mT, b.float())
        return list(self._processes.total(found))

    def _sum(self, inputs: Inputs) -> list[Statistics]:
        groups, _, width = inputs[0].shape
        if sum(part.shape[1] for part in inputs) == 0 and self._processes.count == 1:
            raise DataError("pruning: the calibration data holds nothing but padding")
        if self._needs == "norms":
            norms = torch.zeros(groups, width, dtype=torch.float64)
            for part in inputs:
                norms += part.float().square().sum(1)
            norms = self._processes.total(norms)
            return [Statistics(norms=norms[group]) for group in range(groups)]
        gram = torch.zeros(groups, width, width)
        for part in inputs:
            gram.baddbmm_(part.float().mT, part.float())
        gram = self._processes.total(gram)
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


def agreed(processes: Processes, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise ModelError for the first matrix that is not bit for bit the same in all processes."""
    if processes.count == 1:
        return
    sums = torch.tensor(
        [zlib.crc32(weight.contiguous().numpy().data) for weight in weights.values()], dtype=torch.int64
    )
    differ = processes.total(sums) != sums * processes.count
    # One process may hit the mean of the others' by chance: whoever sees a difference, all must stop.
    if int(processes.total(differ.sum())):
        name = list(weights)[int(differ.to(torch.int8).argmax())]
        raise ModelError(f"pruning: the processes solved {name} differently; their machines or libraries differ")
