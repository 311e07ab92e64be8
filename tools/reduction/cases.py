"""Which ways of pruning the benchmark runs, by section."""

from __future__ import annotations

from reduction.pruned import Case

_METHODS = ("magnitude", "wanda", "sparsegpt")
_SHARES = (0.5, 0.7, 0.8)

# Beside the authors' figures, in the order of their table.
REFERENCE = (
    *(Case(0.5, "unstructured", method) for method in _METHODS),
    *(Case(0.5, "2:4", method) for method in _METHODS),
    *(Case(zeros, "unstructured", method) for zeros in _SHARES[1:] for method in _METHODS),
)
# What this tool has beyond: the l0 solver, and zeros shared out over the layers.
BEST = (
    Case(0.5, "unstructured", "alps"),
    Case(0.5, "2:4", "alps"),
    *(Case(zeros, "unstructured", "alps") for zeros in _SHARES[1:]),
    *(Case(0.5, pattern, "alps", reference="dense") for pattern in ("unstructured", "2:4")),
    *(Case(zeros, "unstructured", "alps", reference="dense") for zeros in _SHARES[1:]),
    *(Case(zeros, "unstructured", method, "owl") for zeros in _SHARES[1:] for method in ("wanda", "sparsegpt", "alps")),
    *(Case(zeros, "unstructured", method, "global") for zeros in _SHARES for method in ("magnitude", "alps")),
)
# Patterns that some target pays for.
PATTERNS = (
    *(Case(0.5, "4:8", method) for method in ("wanda", "alps")),
    *(Case(0.75, "1:4", method) for method in ("wanda", "alps")),
    *(
        Case(0.5, pattern, method)
        for pattern in ("1x4", "1x16", "4x4", "tile:4x16")
        for method in ("magnitude", "alps")
    ),
)
# How zeros are shared out over the layers, one method at a time.
ALLOCATION = tuple(
    Case(zeros, "unstructured", method, allocation)
    for zeros in (0.5, 0.7)
    for method in ("wanda", "sparsegpt")
    for allocation in ("uniform", "owl", "sensitivity")
)
# Tiles, with neurons and heads as they stand and in a better order.
ORDER = tuple(
    Case(zeros, pattern, method, reorder=reorder)
    for zeros in (0.5, 0.75)
    for pattern in ("tile:2x16", "tile:4x16")
    for method in ("wanda", "sparsegpt")
    for reorder in (False, True)
)
QUICK = frozenset(REFERENCE[:6]) | {BEST[0], BEST[1]}


def chosen(section: str, quick: bool) -> tuple[Case, ...]:
    """The cases of a section; with `quick` those at 50 % zeros that the authors have dev figures for, and ALPS."""
    sections = {
        "reference": REFERENCE,
        "best": BEST,
        "patterns": PATTERNS,
        "allocation": ALLOCATION,
        "order": ORDER,
    }
    cases: tuple[Case, ...] = sections[section]
    return tuple(case for case in cases if not quick or case in QUICK)
