"""Zeros by layer so that the layers' losses, added up, are least: the sensitivity-guided allocation.

min sum_l f_l(z_l)  s.t.  sum_l w_l z_l = zeros * sum_l w_l,  floor <= z_l <= ceiling

f_l is the measured curve of layer l, (0, 0) and the scanned levels joined by lines, and w_l its weights. On the lower
convex hulls of the curves this is a linear programme whose exact solution takes the hulls' pieces in the order of their
slope per weight until the total is reached (equal slopes at the optimum are the Lagrangian condition); all layers but
one end at a corner of their hull.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from edgeredux.closeness import Gauge
from edgeredux.errors import RecipeError
from edgeredux.model import Model
from edgeredux.pruning.sensitivity import WeightScan, scan
from edgeredux.pruning.work import Work
from edgeredux.seams import ReduceContext

_SPREAD = 0.2
_SAMPLES = 64  # of the calibration data, to take the losses on
_MOST = 0.95  # no layer has more zeros than this, unless all have to
Points = Sequence[tuple[float, float]]  # (zeros, loss), rising zeros


def sensitivity_shares(
    model: Model, work: Work, context: ReduceContext, zeros: float, spread: float | None
) -> dict[str, float]:
    """Zeros by layer from a scan of `work`'s layers, modules of `model`, at zeros - spread, zeros and zeros + spread.

    The weighted mean is `zeros`. Only calibration data is looked at.
    """
    floor, ceiling = bounds(zeros, _SPREAD if spread is None else spread, _MOST)
    grid = tuple(share for share in dict.fromkeys((floor, zeros, ceiling)) if share > 0)
    sizes = {layer.name: layer.matrix().numel() for layer in work.layers}
    return shares(loss_curves(model, work, context, grid), sizes, zeros, floor, ceiling)


def bounds(zeros: float, spread: float, most: float) -> tuple[float, float]:
    """The least and the most that a layer may lose where all lose `zeros`: within `spread`, `most` unless all must."""
    return max(0.0, zeros - spread), max(zeros, min(most, zeros + spread))


def loss_curves(model: Model, work: Work, context: ReduceContext, grid: tuple[float, ...]) -> dict[str, Points]:
    """What the model loses where one of `work`'s layers alone has zeros, from (0, 0) on over the rising `grid`.

    Raises RecipeError for a layer that is too small to lose a cell of the pattern even at the last share.
    """
    what = WeightScan(work.method, work.pattern, grid)
    for layer in work.layers:
        if not what.levels(layer):
            raise RecipeError(
                f"allocation: sensitivity: a share of {grid[-1]:g} takes nothing of {layer.name} in pattern "
                f"{work.pattern.name}; exclude it or ask for more zeros"
            )
    gauge = Gauge(model, context.calibration, _SAMPLES)
    found = scan(model, work.layers, what, gauge, context.calibration, context.seed, context.progress)
    return {name: [(0.0, 0.0), *zip(curve.zeros, curve.loss, strict=True)] for name, curve in found.items()}


def shares(
    curves: Mapping[str, Points], weights: Mapping[str, int], zeros: float, floor: float, ceiling: float
) -> dict[str, float]:
    """Zeros by layer, weighted mean `zeros` exactly (in real numbers), each within floor..ceiling; floor <= zeros."""
    found = dict.fromkeys(curves, floor)
    left = (zeros - floor) * sum(weights.values())
    pieces = []
    for place, (name, points) in enumerate(curves.items()):
        for index, ((a, f), (b, g)) in enumerate(pairwise(hull(clipped(points, floor, ceiling)))):
            pieces.append(((g - f) / ((b - a) * weights[name]), place, index, name, b - a))
    for _, _, _, name, width in sorted(pieces):
        taken = min(width, left / weights[name])
        found[name] += taken
        left -= taken * weights[name]
        if taken < width:
            break
    return found


def clipped(points: Points, floor: float, ceiling: float) -> list[tuple[float, float]]:
    """The part of the curve between floor and ceiling, beyond its last point as steep as before it."""
    if floor == ceiling:
        return [(floor, value(points, floor))]
    inside = [(z, f) for z, f in points if floor < z < ceiling]
    return [(floor, value(points, floor)), *inside, (ceiling, value(points, ceiling))]


def value(points: Points, zeros: float) -> float:
    """The loss at `zeros` on the lines through `points`, whose first is (0, 0)."""
    (a, f), (b, g) = next((pair for pair in pairwise(points) if zeros <= pair[1][0]), list(pairwise(points))[-1])
    return f + (g - f) * (zeros - a) / (b - a)


def hull(points: Points) -> list[tuple[float, float]]:
    """The lower convex hull, by Andrew's monotone chain."""
    kept: list[tuple[float, float]] = []
    for z, f in points:
        while len(kept) > 1:
            (a, p), (b, q) = kept[-2:]
            if (q - p) * (z - b) < (f - q) * (b - a):
                break
            kept.pop()
        kept.append((z, f))
    return kept
