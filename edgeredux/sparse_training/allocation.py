"""How many zeros each layer gets, the total exact: floor(zeros * weights) of all layers together.

uniform     every layer the same share, whatever its size
erk         Erdos-Renyi-Kernel (Evci et al. 2020, section 3): a layer's density is proportional to the sum of its
            weight's dimensions over their product, so large layers are sparser. For a Linear that is Erdos-Renyi
            (Mocanu et al. 2018), (inputs + outputs) / (inputs * outputs). Layers that would exceed 1 are dense
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal, TypeAlias

from edgeredux.errors import RecipeError
from edgeredux.sparsity.counts import count_of

Allocation: TypeAlias = Literal["uniform", "erk"]


def zeros_by_layer(shapes: Mapping[str, Sequence[int]], zeros: float, allocation: Allocation) -> dict[str, int]:
    """Zeros of each layer, from the shapes of the weights. Raises RecipeError when a layer would keep nothing."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    keep = sum(sizes.values()) - count_of(zeros, sum(sizes.values()))
    relative = {
        name: Fraction(1) if allocation == "uniform" else Fraction(sum(shape), math.prod(shape))
        for name, shape in shapes.items()
    }
    kept = _whole(_scaled(sizes, relative, keep), keep)
    for name, count in kept.items():
        if count == 0:
            raise RecipeError(
                f"layer {name} would keep none of its {sizes[name]} weights at zeros {zeros:g} ({allocation}); "
                "ask for fewer zeros or exclude it"
            )
    return {name: sizes[name] - kept[name] for name in shapes}


def _scaled(sizes: Mapping[str, int], relative: Mapping[str, Fraction], keep: int) -> dict[str, Fraction]:
    """Weights to keep by layer, `keep` in all: sizes times relative densities times one factor, at most the sizes."""
    full: set[str] = set()
    while True:
        rest = keep - sum(sizes[name] for name in full)
        weighed = sum((relative[name] * sizes[name] for name in sizes if name not in full), Fraction(0))
        factor = rest / weighed if weighed else Fraction(0)
        # A layer cut at 1 leaves more to the others, so one that exceeds 1 now still will.
        over = {name for name in sizes if name not in full and factor * relative[name] > 1}
        if not over:
            return {
                name: Fraction(sizes[name]) if name in full else factor * relative[name] * sizes[name] for name in sizes
            }
        full |= over


def _whole(wanted: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Whole numbers that add up to `total`: floors, then the largest remainders get one more, ties by order."""
    counts = {name: int(value) for name, value in wanted.items()}
    ranked = sorted(wanted, key=lambda name: counts[name] - wanted[name])
    for name in ranked[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
