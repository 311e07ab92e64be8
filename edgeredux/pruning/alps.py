"""ALPS (Meng et al. 2024): ADMM on min ||X (W - W')||^2 with an exact count, then conjugate gradients on the support.

In coordinates where every input has unit norm, W^t+1 = (H + rho I)^-1 (H W0 - V + rho D), D = the pattern's projection
of W + V / rho, V += rho (W - D) (section 3.1); rho grows the faster the more the support still moves, and the support
is final when it did not move in a whole check (section 3.2, appendix B.1). The refit is preconditioned conjugate
gradients over all rows at once, gradients outside the support projected away (algorithm 2).
"""

from __future__ import annotations

import torch

from edgeredux.pruning.sparsegpt import damped
from edgeredux.sparsity.patterns import Pattern

_RHO = 0.1
_CHECK = 3  # iterations between two looks at the support
# Share of the kept weights that moved since the last look -> factor of rho.
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


def alps(
    weight: torch.Tensor,
    gram: torch.Tensor,
    pattern: Pattern,
    removed: int,
    *,
    damping: float = 0.01,
    iterations: int = 300,
    refit: int = 20,
) -> torch.Tensor:
    """The weight [outputs, inputs] with `removed` steps of the pattern zero and the rest refitted; float32."""
    if removed == 0:
        return weight.clone()
    h = damped(gram, damping).to(weight.dtype)
    scale = h.diagonal().rsqrt()
    h = h * scale * scale[:, None]
    start = weight / scale
    values, vectors = torch.linalg.eigh(h)
    values = values.clamp_min(0.0)
    wanted = start @ h
    d, v, rho = start, torch.zeros_like(start), _RHO
    mask = torch.zeros_like(start, dtype=torch.bool)
    seen = mask
    kept = max(1, weight.numel() - removed * weight.numel() // pattern.steps(*weight.shape))
    for iteration in range(1, iterations + 1):
        w = ((wanted - v + rho * d) @ vectors / (values + rho)) @ vectors.T
        free = w + v / rho
        mask = pattern.mask(free.square(), removed)
        d = free.masked_fill(mask, 0.0)
        v = v + rho * (w - d)
        if iteration % _CHECK == 0:
            moved = int((mask ^ seen).sum())
            if moved == 0:
                break
            rho *= next(factor for share, factor in _GROWTH if moved >= share * kept)
            seen = mask
    return refitted(start, h, mask, d, refit) * scale


def refitted(start: torch.Tensor, h: torch.Tensor, mask: torch.Tensor, first: torch.Tensor, steps: int) -> torch.Tensor:
    """min ||X (start - W)||^2 over W that is zero where `mask`, from `first`, by `steps` of conjugate gradients."""
    w = first.masked_fill(mask, 0.0)
    inverse = h.diagonal().reciprocal()
    residual = ((start - w) @ h).masked_fill_(mask, 0.0)
    z = residual * inverse
    p, energy = z, (residual * z).sum(1, keepdim=True)
    for _ in range(steps):
        hp = (p @ h).masked_fill_(mask, 0.0)
        length = energy / (p * hp).sum(1, keepdim=True).clamp_min(1e-30)
        w = w + length * p
        residual = residual - length * hp
        z = residual * inverse
        following = (residual * z).sum(1, keepdim=True)
        p = z + following / energy.clamp_min(1e-30) * p
        energy = following
    return w.masked_fill(mask, 0.0)
