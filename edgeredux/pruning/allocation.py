"""How many zeros each layer gets. The total over all layers is exact: floor(zeros * weights), or the pattern's own.

uniform      every layer the share `zeros`
global       cells of all layers compete, so that what is lost in all is least; scores that come from a layer's own
             inputs are taken relative to the layer's mean, since layers' outputs have scales of their own
owl          a block with more outliers keeps more (Yin et al. 2023, section 3.2): with A = |W| * ||X||, D = share of A
             beyond `outlier` times its mean, a block's zeros fall linearly in D, within `spread` of the mean
sensitivity  each layer alone is pruned to a few levels and the model's loss measured; the zeros by layer that make the
             sum of those losses least, within `spread` of the mean (sensitivity_allocation.py)
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from edgeredux.errors import RecipeError
from edgeredux.sparsity.counts import count_of
from edgeredux.sparsity.patterns import Pattern


@dataclass(frozen=True)
class Asked:
    """One matrix among those that share the zeros: its shape, its block, and scores where the way needs them."""

    rows: int
    columns: int
    block: str = ""
    scores: torch.Tensor | None = None  # [rows, columns]
    outliers: float = 0.0  # D of OWL

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * self.columns


def uniform(asked: Mapping[str, Asked], pattern: Pattern, zeros: float) -> dict[str, int]:
    """Steps to remove by layer: floor(zeros * steps) in each."""
    return {name: pattern.removed(item.rows, item.columns, zeros) for name, item in asked.items()}


def by_share(asked: Mapping[str, Asked], pattern: Pattern, shares: Mapping[str, float], zeros: float) -> dict[str, int]:
    """Steps that come nearest to each layer's share, never below, with floor(zeros * weights) weights in all."""
    total = count_of(zeros, sum(item.weights for item in asked.values()))
    steps = {name: pattern.steps(item.rows, item.columns) for name, item in asked.items()}
    removed = {name: min(int(shares[name] * steps[name]), steps[name] - 1) for name in asked}
    sizes = {name: item.weights // steps[name] for name, item in asked.items()}
    left = total - sum(removed[name] * sizes[name] for name in asked)
    # What rounding left goes to the layers in turn, those that are furthest below their share first.
    while left > 0:
        order = sorted(asked, key=lambda name: removed[name] / steps[name] - shares[name])
        fit = [name for name in order if sizes[name] <= left and removed[name] < steps[name] - 1]
        if not fit:
            break
        # Many single weights at once, so that a large model does not take a turn for each.
        turns = max(1, min(left // (sizes[fit[0]] * len(fit)), steps[fit[0]] - 1 - removed[fit[0]]))
        removed[fit[0]] += turns
        left -= turns * sizes[fit[0]]
    return removed


def globally(asked: Mapping[str, Asked], pattern: Pattern, zeros: float) -> dict[str, int]:
    """Steps by layer when all compete: cheapest step for a weight first, floor(zeros * weights) weights in all.

    Raises RecipeError for n:m, where every layer has the same share by definition.
    """
    if pattern.window:
        raise RecipeError(f"prune: pattern {pattern.name} gives every layer the same zeros; set allocation: uniform")
    budget = count_of(zeros, sum(item.weights for item in asked.values()))
    costs = {name: _step_costs(item, pattern) for name, item in asked.items()}
    sizes = {name: item.weights // len(costs[name]) for name, item in asked.items()}
    if set(sizes.values()) == {1}:
        # Single weights: one selection over all layers, ties by layer and place.
        order = torch.argsort(torch.cat(list(costs.values())), stable=True)[:budget]
        ends = torch.cumsum(torch.tensor([len(value) for value in costs.values()]), 0)
        counts = torch.bincount(torch.bucketize(order, ends, right=True), minlength=len(costs)).tolist()
        return dict(zip(costs, counts, strict=True))
    removed = dict.fromkeys(asked, 0)
    heap = [(float(costs[name][0]) / sizes[name], place, name) for place, name in enumerate(asked)]
    heapq.heapify(heap)
    while heap:
        _, place, name = heapq.heappop(heap)
        if sizes[name] > budget:
            continue
        budget -= sizes[name]
        removed[name] += 1
        if removed[name] < len(costs[name]) - 1:
            heapq.heappush(heap, (float(costs[name][removed[name]]) / sizes[name], place, name))
    return removed


def _step_costs(item: Asked, pattern: Pattern) -> torch.Tensor:
    """What each further step of the layer loses, in rising order, [steps]."""
    assert item.scores is not None
    cells = pattern.cell_scores(item.scores)
    groups = cells if pattern.compete == "row" else cells.reshape(1, -1)
    return groups.sort(dim=-1).values.sum(0)


def outlier_share(weight: torch.Tensor, norms: torch.Tensor, outlier: float) -> float:
    """Share of |W| * ||X|| that is beyond `outlier` times its mean (Yin et al. 2023, eq. 2)."""
    scores = weight.abs() * norms.to(weight.dtype).sqrt()
    return float((scores > outlier * scores.mean()).float().mean())


def owl_shares(asked: Mapping[str, Asked], zeros: float, spread: float) -> dict[str, float]:
    """Zeros by layer: equal in a block, falling in its outliers, within `spread` of `zeros`, weighted mean `zeros`."""
    blocks: dict[str, list[str]] = {}
    for name, item in asked.items():
        blocks.setdefault(item.block or name, []).append(name)
    weights = {block: sum(asked[name].weights for name in names) for block, names in blocks.items()}
    found = {
        block: sum(asked[name].outliers * asked[name].weights for name in names) / weights[block]
        for block, names in blocks.items()
    }
    low, high = min(found.values()), max(found.values())
    width = high - low
    raised = {block: 2 * spread * ((value - low) / width if width else 0.5) for block, value in found.items()}
    mean = sum(raised[block] * weights[block] for block in blocks) / sum(weights.values())
    return {name: min(max(zeros + mean - raised[block], 0.0), 0.999) for block in blocks for name in blocks[block]}


def relative(scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each layer's scores over their own mean."""
    return [value / value.mean().clamp_min(1e-30) for value in scores]
