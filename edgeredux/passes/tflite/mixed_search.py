"""Which of a model's parts need more bits: the fewest that measured error allows, each step of it measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Agreement with the given file, at most 1, of a file whose parts are at these levels.
Measure = Callable[[Mapping[str, int]], float]


@dataclass(frozen=True)
class Found:
    """A level for each part, the agreement it was measured at, the agreement with each part alone lowered, and the
    number of measurements."""

    levels: dict[str, int]
    agreement: float
    alone: dict[str, float]
    tried: int


def search(sizes: Mapping[str, int], top: int, measure: Measure, limit: float) -> Found:
    """The parts at the lowest level that nearly suffices, and as few as possible raised by one, that reach `limit`.

    `sizes` are the parts and their bytes. Levels 0 to `top` are tried on all parts until one suffices. At the level
    below, each part is tried alone, the others at `top`. Then parts are raised in two orders, those that lose most
    first and those that lose most a byte first (ties: the earlier part), as few as bisection finds to suffice; the
    order that raises fewer bytes is taken. The answer was measured as it stands; it falls short of the limit only where
    all parts at `top` do.
    """
    tried = 0

    def of(levels: Mapping[str, int]) -> float:
        nonlocal tried
        tried += 1
        return measure(levels)

    parts = list(sizes)
    level, agreement = 0, of(dict.fromkeys(parts, 0))
    while agreement < limit and level < top:
        level += 1
        agreement = of(dict.fromkeys(parts, level))
    best = dict.fromkeys(parts, level)
    if level == 0 or agreement < limit:
        return Found(best, agreement, {}, tried)
    low = dict.fromkeys(parts, level - 1)
    alone = {part: of({**dict.fromkeys(parts, top), part: level - 1}) for part in parts}
    lost = {part: 1 - alone[part] for part in parts}
    raised: dict[int, tuple[dict[str, int], float]] = {}
    for worth in (lost, {part: lost[part] / max(1, sizes[part]) for part in parts}):
        order = sorted(parts, key=lambda part: (-worth[part], parts.index(part)))
        few, many, levels, reached = 0, len(order), best, agreement  # raising none falls short, raising all suffices
        while many - few > 1:
            middle = (few + many) // 2
            trial = {**low, **dict.fromkeys(order[:middle], level)}
            found = of(trial)
            if found >= limit:
                levels, reached, many = trial, found, middle
            else:
                few = middle
        raised.setdefault(sum(sizes[part] for part in order[:many]), (levels, reached))
    best, agreement = raised[min(raised)]
    return Found(best, agreement, alone, tried)
