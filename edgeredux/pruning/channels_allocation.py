"""How many units each group of channels loses, and which: counted, ties by lower index.

uniform    floor(share * units) of every group
global     floor(share * all units), those with the smallest scores of all groups together
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from edgeredux.errors import RecipeError
from edgeredux.pruning.coupling import Group, Labels
from edgeredux.sparsity.counts import count_of


def choose(
    groups: Sequence[Group],
    scores: Sequence[torch.Tensor],
    share: float,
    allocation: Literal["uniform", "global"],
    minimum: int,
    multiple_of: int,
) -> list[Labels]:
    """The units to remove, by group. What is kept of a group is at least `minimum` units.

    With `multiple_of`, the channels a group keeps are rounded up to a multiple (a group that is narrower stays whole),
    so up to that many fewer go. Raises RecipeError when the minimum keeps more than the share leaves (global).
    """
    ranked = [torch.argsort(score, stable=True) for score in scores]
    most = [max(0, len(group.units) - minimum) for group in groups]
    if allocation == "uniform":
        counts = [min(count_of(share, len(group.units)), limit) for group, limit in zip(groups, most, strict=True)]
    else:
        counts = _globally(scores, ranked, most, count_of(share, sum(len(group.units) for group in groups)), minimum)
    return [
        group.units[order[: _rounded(group, count, multiple_of)].sort().values.numpy()]
        for group, order, count in zip(groups, ranked, counts, strict=True)
    ]


def _globally(
    scores: Sequence[torch.Tensor], ranked: Sequence[torch.Tensor], most: Sequence[int], total: int, minimum: int
) -> list[int]:
    if total > sum(most):
        raise RecipeError(
            f"channels: {total} channels are to go, but only {sum(most)} can while every group keeps {minimum}; "
            "lower share or minimum"
        )
    # Within a group the smallest go first, so a cut through all that may go is a count by group.
    able = [score[order[:limit]] for score, order, limit in zip(scores, ranked, most, strict=True)]
    home = torch.cat([torch.full((len(part),), place) for place, part in enumerate(able)])
    gone = home[torch.argsort(torch.cat(able), stable=True)[:total]]
    return torch.bincount(gone, minlength=len(able)).tolist()


def _rounded(group: Group, count: int, multiple_of: int) -> int:
    """Units to remove so that the first writer's channels left are a multiple; never more than `count`."""
    channels = max(1, int(np.isin(group.writers[0].labels, group.units).sum()) // len(group.units))
    step = multiple_of // math.gcd(multiple_of, channels)
    kept = math.ceil((len(group.units) - count) / step) * step
    return max(0, len(group.units) - kept)
