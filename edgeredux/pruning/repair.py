"""Least-squares repair: what is left of a layer is refitted so that its outputs are again the dense model's.

    min over W, b of  ||Y - X W^T - b||_F^2 + ridge * mean diag(X^T X) * ||W - W0||_F^2

Y the dense model's outputs, X what the pruned model feeds the layer (He et al. 2017, eq. 3, with a ridge around the
weights W0 that the layer has). The intercept b is free; a layer without one is fitted through zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeredux.errors import DataError

MINIMUM_POSITIONS = 64


def ridge_fit(
    inputs: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    start: torch.Tensor,
    ridge: float,
    *,
    intercept: bool,
    where: str,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [outputs, inputs] and intercept [outputs] (None without), float64.

    `inputs` and `targets` are batches of [positions, inputs] and [positions, outputs]; `start` is W0. Raises DataError,
    naming `where`, when there are fewer than 64 positions in all.
    """
    count = sum(len(part) for part in inputs)
    if count < MINIMUM_POSITIONS:
        raise DataError(
            f"{where}: {count} calibration positions are too few to refit from; at least {MINIMUM_POSITIONS} are "
            "needed, so give more samples"
        )
    first, wide, tall = start.double(), start.shape[1], start.shape[0]
    gram = torch.zeros(wide, wide, dtype=torch.float64)
    cross = torch.zeros(wide, tall, dtype=torch.float64)
    x_mean, y_mean = torch.zeros(wide, dtype=torch.float64), torch.zeros(tall, dtype=torch.float64)
    if intercept:
        x_mean = torch.stack([part.sum(0, dtype=torch.float64) for part in inputs]).sum(0) / count
        y_mean = torch.stack([part.sum(0, dtype=torch.float64) for part in targets]).sum(0) / count
    for x, y in zip(inputs, targets, strict=True):
        centred = x.double() - x_mean
        gram.addmm_(centred.T, centred)
        cross.addmm_(centred.T, y.double() - y_mean - centred @ first.T)
    penalty = ridge * float(gram.diagonal().mean())
    if penalty <= 0:  # all inputs are constant: nothing to learn but the intercept
        return first, (y_mean - first @ x_mean if intercept else None)
    gram.diagonal().add_(penalty)
    fitted = first + torch.cholesky_solve(cross, torch.linalg.cholesky(gram)).T
    return fitted, (y_mean - fitted @ x_mean if intercept else None)
