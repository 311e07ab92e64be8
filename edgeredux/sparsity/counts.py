"""How many units a share is, and which ones: counted, never found by a threshold, so that ties remove nothing extra."""

from __future__ import annotations

from fractions import Fraction

import torch


def count_of(share: float, total: int) -> int:
    """floor(share * total), the share taken as the decimal number it is written as (0.29 of 100 is 29, not 28)."""
    return int(Fraction(repr(share)) * total)


def smallest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Boolean mask of exactly `count` elements of the last axis with the smallest scores; ties by lower index."""
    order = torch.argsort(scores, dim=-1, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(-1, order[..., :count], True)
