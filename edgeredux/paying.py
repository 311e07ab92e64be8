"""Which zeros a recipe makes, and whether they pay where it wants to run: by the rules of the target's file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from edgeredux.seams import ReduceStep
from edgeredux.target import SparsityRule, Target
from edgeredux.units import STRUCTURED

Steps = Sequence[tuple[str, dict[str, Any], ReduceStep]]
_SHRINKING = {"group_lasso", "student", *(step for step, _, _ in STRUCTURED.values())}
_SCATTERING = {"rigl", "set", "static", "l1"}  # steps that know one pattern: single weights


class Zeros(NamedTuple):
    """What a reduce step takes out: by its name, in a pattern of the target files (or n:m as written), which share."""

    step: str
    pattern: str
    share: float | None  # None: the step finds out, or the pattern says


def made_by(steps: Steps) -> Iterator[Zeros]:
    """The zeros of each step that makes some. Shapes that shrink are the pattern "structured"."""
    for name, _, step in steps:
        pattern = getattr(step, "pattern", None)
        if name in _SHRINKING or (name == "prune_until" and pattern in STRUCTURED):
            yield Zeros(name, "structured", None)
        elif name in _SCATTERING:
            yield Zeros(name, "unstructured", getattr(step, "zeros", None))
        elif name in ("prune", "prune_until", "movement", "gradual") and isinstance(pattern, str):
            kind = _kind(pattern)
            yield Zeros(name, kind, None if ":" in kind else getattr(step, "zeros", None))


def _kind(pattern: str) -> str:
    if pattern.startswith("tile"):
        return "tile"
    if pattern.startswith("block") or re.fullmatch(r"\d+x\d+", pattern):
        return "block"
    return pattern


def rule_for(target: Target, runner: str, pattern: str) -> SparsityRule | None:
    """What the target's file says of a pattern under a runner; None when it says nothing."""
    rules = [r for r in target.sparsity if r.pattern == pattern and (not r.runtimes or runner in r.runtimes)]
    return rules[0] if rules else None


def unpaid(target: Target, runner: str, zeros: Zeros, passes: Sequence[str]) -> str | None:
    """Why these zeros buy nothing on the target under this runner, in a line with the rule's source; None: they pay."""
    where = f"{zeros.step}: {zeros.pattern} zeros do not pay on {target.name} ({runner})"
    rule = rule_for(target, runner, zeros.pattern)
    if rule is None:
        return f"{where}: its file has no rule that says so{_instead(target, runner)}"
    if not rule.pays:
        return f"{where}: {rule.source}{_instead(target, runner)}"
    if zeros.share is not None and rule.from_zeros is not None and zeros.share < rule.from_zeros:
        return f"{where} below {rule.from_zeros:.0%} of them, {zeros.share:.0%} are asked for: {rule.source}"
    absent = [name for name in rule.needs if name not in passes]
    if absent:
        return f"{where} without the pass {', '.join(absent)}: {rule.source}"
    return None


def _instead(target: Target, runner: str) -> str:
    paying = [r for r in target.sparsity if r.pays and (not r.runtimes or runner in r.runtimes)]
    said = [f"{r.pattern} from {r.from_zeros:.0%}" if r.from_zeros else r.pattern for r in paying]
    return f"; what pays there: {', '.join(said)}" if said else "; no pattern is known to pay there"
