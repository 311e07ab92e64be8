"""SparseGPT (Frantar & Alistarh 2023): what stays of each row makes up for what goes, by the inputs' second moments.

With H the damped Gram matrix of the inputs and U the upper Cholesky factor of H^-1, columns go left to right: weight w
of column j costs (w / U_jj)^2, and a removed one is made up for by -w / U_jj * U_j,: in the columns to its right
(eq. 3 and algorithm 1). What goes is chosen `block` columns at a time, from the weights as updated so far. Cells as
high as a band (tile) are removed one after another instead, each exactly made up for by all that is left (surgeon.py):
a choice within 128 columns would force every 128 columns to keep equally much.
"""

from __future__ import annotations

import torch

from edgeredux.errors import ModelError
from edgeredux.pruning.surgeon import remove_blocks
from edgeredux.sparsity.patterns import Pattern


def damped(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """The Gram matrix with `damping` times its mean diagonal added to the diagonal, [inputs, inputs]."""
    h = gram.clone()
    h.diagonal().add_(_ridge(gram, damping))
    return h


def inverse_factor(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper Cholesky factor U of the damped Gram matrix' inverse: U^T U = H^-1, [inputs, inputs].

    With J the reversal of order and J H J = L L^T, U = J L^-1 J: half the work of inverting H and factoring that.
    """
    h = gram.flip(0, 1)  # a copy
    h.diagonal().add_(_ridge(gram, damping))
    lower: torch.Tensor = torch.linalg.cholesky(h)
    del h  # of an input width of 9,000 each of these matrices is 300 MB
    return _invert_lower(lower).flip(0, 1)


def _ridge(gram: torch.Tensor, damping: float) -> torch.Tensor:
    mean = gram.diagonal().mean()
    if not bool(torch.isfinite(mean)) or float(mean) <= 0:
        raise ModelError("pruning: the calibration data gives a layer only zero or infinite inputs")
    return damping * mean


def _invert_lower(lower: torch.Tensor, base: int = 256) -> torch.Tensor:
    """The inverse of a lower triangular matrix, in its place: [A 0; B C]^-1 = [A^-1 0; -C^-1 B A^-1 C^-1]."""
    size = len(lower)
    if size <= base:
        eye = torch.eye(size, dtype=lower.dtype)
        return lower.copy_(torch.linalg.solve_triangular(lower, eye, upper=False))
    half = (size // 2 + base - 1) // base * base if size > 2 * base else size // 2
    a, b, c = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert_lower(a, base)
    _invert_lower(c, base)
    b.copy_(c @ (b @ a)).neg_()
    return lower


def sparsegpt(
    weight: torch.Tensor,
    gram: torch.Tensor,
    pattern: Pattern,
    removed: int,
    *,
    damping: float = 0.01,
    block: int = 128,
    factor: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weight [outputs, inputs] with `removed` steps of the pattern zero and the rest refitted; float32.

    `factor`: inverse_factor(gram, damping) where it is known already.
    """
    rows, columns = weight.shape
    if pattern.bands:
        height, width = pattern.cell(rows)
        bands = [remove_blocks(band, gram, width, removed, damping) for band in torch.split(weight, height)]
        return torch.cat(bands)
    w = weight.clone()
    if factor is None:
        factor = inverse_factor(gram, damping)
    # A cell is never cut: the block is a multiple of its width and of m.
    unit = pattern.width * (pattern.window or 1)
    block = max(unit, block // unit * unit)
    for first in range(0, columns, block):
        last = min(first + block, columns)
        part, local = w[:, first:last], factor[first:last, first:last]
        mask = torch.zeros_like(part, dtype=torch.bool)
        if not pattern.window:
            count = _share(removed, first, last, columns)
            mask = pattern.mask((part / local.diagonal()).square(), count)
        errors = torch.zeros_like(part)
        for column in range(last - first):
            if pattern.window and column % pattern.window == 0:
                window = slice(column, column + pattern.window)
                mask[:, window] = pattern.mask((part[:, window] / local.diagonal()[window]).square(), removed)
            lost = torch.where(mask[:, column], part[:, column], 0.0)
            errors[:, column] = lost / local[column, column]
            part[:, column:] -= torch.outer(errors[:, column], local[column, column:])
            part[:, column].masked_fill_(mask[:, column], 0.0)
        w[:, last:] -= errors @ factor[first:last, last:]
    return w


def _share(removed: int, first: int, last: int, columns: int) -> int:
    """How many of `removed` steps fall on these columns; over all columns they add up exactly."""
    return removed * last // columns - removed * first // columns
