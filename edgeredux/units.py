"""One vocabulary of patterns: which reduce step prunes in a pattern, and what its options call share and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeredux.errors import RecipeError

# Pattern -> the reduce step that takes such units out, and what its options call the share and the method.
STRUCTURED: Mapping[str, tuple[str, str, str]] = {
    "neurons": ("structured", "ffn", "importance"),
    "heads": ("structured", "heads", "importance"),
    "channels": ("channels", "share", "importance"),
    "width": ("width", "share", "importance"),
    "depth": ("depth", "share", "importance"),
    "vocabulary": ("vocabulary", "", ""),
}


def step_of(
    pattern: str,
    method: str | Mapping[str, Any] | None,
    zeros: float | None,
    allocation: str,
    exclude: Sequence[str],
    where: str,
) -> tuple[str, dict[str, Any]]:
    """The reduce step that prunes in `pattern`, and its options. Raises RecipeError, said of `where`.

    Of a structured pattern's options only those asked for are said, so that the step can refuse them.
    """
    if pattern not in STRUCTURED:
        _check_pattern(pattern, where)
        return "prune", {
            "method": dict(method) if isinstance(method, Mapping) else method or "magnitude",
            "pattern": pattern,
            "zeros": zeros,
            "allocation": allocation,
            "exclude": tuple(exclude),
        }
    step, share, importance = STRUCTURED[pattern]
    options: dict[str, Any] = {"ffn": 0.0, "heads": 0.0} if step == "structured" else {}
    for name, value, said in (
        (share, 0.5 if zeros is None else zeros, bool(share) or zeros is not None),
        (importance, method, method is not None),
        ("allocation", allocation, allocation != "uniform"),
        ("exclude", tuple(exclude), bool(exclude)),
    ):
        if said and not name:
            what = "zeros" if value == zeros else "method"
            raise RecipeError(f"{where}: pattern {pattern} takes no {what}: the data says which tokens are used")
        if said:
            options[name] = value
    return step, options


def _check_pattern(pattern: str, where: str) -> None:
    from edgeredux.sparsity.patterns import parse

    try:
        parse(pattern)
    except RecipeError as problem:
        raise RecipeError(f"{where}: {problem}; for shapes that shrink: {', '.join(STRUCTURED)}") from problem
