"""How many units each group loses: an exact count, given layer by layer or shared out over the model by score.

uniform   floor(share * units) of every group, `share` its own where a mapping names groups by pattern
global    floor(share * all units of the kind): those with the smallest scores, each group's scores divided by their
          mean, since a unit matters for its share of what its layer says. One unit stays everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

import torch

from edgeredux.errors import RecipeError
from edgeredux.pruning.groups import Group
from edgeredux.sparsity.counts import count_of


def share_of(group: Group, said: float | Mapping[str, float]) -> float:
    """The share that a group loses: of a mapping the first pattern (shell style) that matches its reader, else 0."""
    if not isinstance(said, Mapping):
        return said
    return next((share for pattern, share in said.items() if fnmatch(group.reader, pattern)), 0.0)


def check_patterns(groups: Sequence[Group], said: float | Mapping[str, float], where: str) -> None:
    """Raise RecipeError for a pattern that matches no group."""
    for pattern in said if isinstance(said, Mapping) else ():
        if not any(fnmatch(group.reader, pattern) for group in groups):
            some = ", ".join(group.reader for group in groups[:2])
            raise RecipeError(f"{where}: {pattern!r} matches no group. Groups: {some}, ... ({len(groups)})")


def uniform(groups: Sequence[Group], said: float | Mapping[str, float]) -> list[int]:
    """Units to remove of each group; at least one stays."""
    return [min(group.units - 1, count_of(share_of(group, said), group.units)) for group in groups]


def over_all(groups: Sequence[Group], scores: Sequence[torch.Tensor], share: float) -> list[int]:
    """Units to remove of each group, floor(share * all units) in sum. Raises RecipeError where that empties groups.

    Groups of one `tie` lose as many units each as the others, as one: a cut that would split a tie takes fewer units
    of it and more elsewhere; where the total cannot be met so, RecipeError says it.
    """
    total, most = count_of(share, sum(group.units for group in groups)), sum(group.units - 1 for group in groups)
    if total > most:
        raise RecipeError(f"structured: {total} units are to go, but {most} can while every layer keeps one")
    bundles: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        bundles.setdefault(group.tie or f"\0{place}", []).append(place)
    if len(bundles) == 1 and len(groups) > 1:
        raise RecipeError("structured: all heads are tied by one position bias; allocation: global cannot differ there")
    counts = [0] * len(groups)
    order: list[tuple[float, int, int]] = []
    for members in bundles.values():
        score = torch.stack([normalised(scores[place]) for place in members]).mean(0)
        # Within a bundle the smallest go first, and one stays.
        order += [(value, members[0], rank) for rank, value in enumerate(score.sort().values[:-1].tolist())]
    size = {members[0]: members for members in bundles.values()}
    shut: set[int] = set()
    left = total
    for _, first, _ in sorted(order):
        if first in shut or left < len(size[first]):
            shut.add(first)
            continue
        for place in size[first]:
            counts[place] += 1
        left -= len(size[first])
    if left:
        raise RecipeError(f"structured: {total} units cannot be shared out over tied layers; {total - left} can")
    return counts


def normalised(score: torch.Tensor) -> torch.Tensor:
    """Scores over their mean; as they are where all are zero."""
    mean = score.mean()
    return score / mean if float(mean) > 0 else score
