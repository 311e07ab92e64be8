"""Optimal brain surgeon for blocks of inputs that all rows of a matrix share: exact, greedy, one block after another.

Removing the inputs S from min ||X (W - W')||^2 costs tr(W_S ([H^-1]_SS)^-1 W_S^T) and is made up for by W -= W_S
([H^-1]_SS)^-1 [H^-1]_S,: (Hassibi & Stork 1993, for blocks as in Kurtic et al. 2023, eq. 2). The inverse of the H that
is left follows by a rank-|S| downdate, so every choice sees the weights as refitted after the one before.
"""

from __future__ import annotations

import torch

from edgeredux.sparsity.counts import smallest


def remove_blocks(weight: torch.Tensor, gram: torch.Tensor, width: int, count: int, damping: float) -> torch.Tensor:
    """`weight` [outputs, inputs] without `count` blocks of `width` neighbouring inputs, the rest refitted.

    The result is the least-squares solution on the inputs that stay, with `damping` times the mean diagonal as ridge
    around the given weights.
    """
    from edgeredux.pruning.sparsegpt import damped

    _, columns = weight.shape
    blocks = columns // width
    h = damped(gram, damping).double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    w = weight.double().clone()
    gone = torch.zeros(blocks, dtype=torch.bool)
    for _ in range(count):
        diagonal = inverse.reshape(blocks, width, blocks, width)[torch.arange(blocks), :, torch.arange(blocks), :]
        parts = w.reshape(len(w), blocks, width).permute(1, 2, 0)  # [blocks, width, outputs]
        eye = torch.eye(width, dtype=w.dtype)
        safe = torch.where(gone[:, None, None], eye, diagonal)
        cost = (parts * torch.linalg.solve(safe, parts)).sum((1, 2))
        cost[gone] = torch.inf
        chosen = int(smallest(cost, 1).nonzero()[0])
        place = slice(chosen * width, (chosen + 1) * width)
        step = torch.linalg.solve(inverse[place, place], inverse[place])  # [width, inputs]
        w = w - w[:, place] @ step
        inverse = inverse - inverse[:, place] @ step
        gone[chosen] = True
        w[:, place] = 0.0
        inverse[place] = inverse[:, place] = 0.0
    w = w.masked_fill(gone.repeat_interleave(width), 0.0)
    return w.to(weight.dtype)
