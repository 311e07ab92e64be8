"""What a recipe says of zeros and pattern, checked: for every step whose options are `zeros` and `pattern`."""

from __future__ import annotations

from edgeredux.errors import RecipeError
from edgeredux.sparsity.patterns import parse


def known_pattern(text: str) -> str:
    """The pattern's own name. Raises ValueError, as pydantic's validators must, that lists what is allowed."""
    try:
        return parse(text).name
    except RecipeError as problem:
        raise ValueError(str(problem)) from problem


def check_zeros(pattern: str, zeros: float | None, allocation: str) -> None:
    """Raise ValueError where an n:m pattern, which says its zeros itself, is asked for others or for uneven layers."""
    said = parse(pattern).fixed_zeros
    if said is None:
        return
    if zeros is not None and zeros != said:
        raise ValueError(f"pattern {pattern} has {said:g} zeros, not {zeros:g}; leave zeros out")
    if allocation != "uniform":
        raise ValueError(f"pattern {pattern} gives every layer {said:g} zeros; set allocation: uniform")


def zeros_asked(pattern: str, zeros: float | None, default: float) -> float:
    """The share of zeros: the pattern's own, else what was said, else `default`."""
    said = parse(pattern).fixed_zeros
    if said is not None:
        return said
    return default if zeros is None else zeros
