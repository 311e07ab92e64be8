"""How many units a share is, and which ones: counted, never found by a threshold, so that ties remove nothing extra."""

from __future__ import annotations

from fractions import Fraction

import torch


def count_of(share: float, total: int) -> int:
    """floor(share * total), the share taken as the decimal number it is written as (0.29 of 100 is 29, not 28)."""
    return int(Fraction(repr(share)) * total)


def smallest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Boolean mask of exactly `count` elements of the last axis with the smallest scores; ties by lower index."""
    size = scores.shape[-1]
    if not 0 < count < size:
        return torch.full_like(scores, count >= size, dtype=torch.bool)
    # Selection instead of sorting: a solver projects onto the pattern in every iteration.
    limit = torch.kthvalue(scores, count, dim=-1, keepdim=True).values
    below, equal = scores < limit, scores == limit
    wanted = count - below.sum(-1, keepdim=True)
    return below | (equal & (equal.cumsum(-1, dtype=torch.int32) <= wanted))
