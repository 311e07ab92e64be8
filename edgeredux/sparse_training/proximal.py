"""Proximal operators: the step that makes exact zeros where a subgradient only makes small numbers.

argmin_v 1/2 ||v - w||^2 + t * penalty(v), after each optimizer step with t = learning rate * strength: the proximal
gradient method (Parikh and Boyd 2014, section 4.2). With AdamW the penalty is decoupled as its weight decay is.
"""

from __future__ import annotations

import math

import torch


def soft_threshold(weight: torch.Tensor, threshold: float) -> torch.Tensor:
    """sign(w) * max(|w| - t, 0): the operator of t * ||w||_1 (Parikh and Boyd 2014, section 6.5.2). Zeros are +0.0."""
    shrunk = weight - weight.sign() * threshold
    return shrunk.masked_fill(weight.abs() <= threshold, 0.0)


def group_threshold(matrix: torch.Tensor, height: int, width: int, threshold: float) -> torch.Tensor:
    """w_g * max(1 - t * sqrt(n) / ||w_g||_2, 0) for every group g, a cell of height x width = n weights.

    The operator of t * sum_g sqrt(n) ||w_g||_2 (Yuan and Lin 2006, eq. 2.4; Parikh and Boyd 2014, section 6.5.4);
    the root makes groups of different sizes pay alike. `matrix` is [outputs, inputs], multiples of the cell.
    """
    rows, columns = matrix.shape
    cells = matrix.reshape(rows // height, height, columns // width, width)
    norms = cells.square().sum((1, 3), keepdim=True).sqrt()
    limit = threshold * math.sqrt(height * width)
    gone = norms <= limit
    scale = 1 - limit / norms.masked_fill(gone, 1.0)
    return (cells * scale).masked_fill(gone, 0.0).reshape(rows, columns)
