"""Whether a target file is complete: every figure with its source, URL and date, every rule with its ground.

What `target.load` refuses is malformed and cannot be used; what is found here is a promise that the file does not keep.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator

from pydantic import ValidationError

from edgeredux import registry
from edgeredux.errors import TargetError, one_line
from edgeredux.hardware import GROUPS
from edgeredux.recipe import ArtifactSection
from edgeredux.target import Target

# Zeros that a user could be sold: each file says of each whether they pay.
_JUDGED = ("structured", "unstructured", "2:4")


def problems(target: Target) -> list[str]:
    """What the file leaves unsaid or unproven, a line each, in the file's order; empty when it is complete."""
    return [
        *_hardware(target),
        *_supports(target),
        *_runtimes(target),
        *_picks(target),
        *_sparsity(target),
        *_energy(target),
        *_sources(target),
    ]


def _hardware(target: Target) -> Iterator[str]:
    names = {line.name for line in target.sources if line.name}
    for place, source in target.hardware.sourced():
        if source not in names:
            yield f"hardware.{place}: source {source!r} is no name of a line under sources"
    for group in GROUPS:
        said, why = bool(getattr(target.hardware, group)), target.hardware.unknown.get(group, "").strip()
        if not said and not why:
            yield f"hardware.{group}: neither said nor, under unknown, why not"
        if said and why:
            yield f"hardware.{group}: said, and called unknown as well"


def _supports(target: Target) -> Iterator[str]:
    if target.supports is None:
        yield "supports: neither dtypes nor operators are said"
    elif target.supports.source not in {line.name for line in target.sources if line.name}:
        yield f"supports: source {target.supports.source!r} is no name of a line under sources"


def _runtimes(target: Target) -> Iterator[str]:
    from edgeredux.runners import options

    for section in target.runtimes:
        where = f"runtimes.{section.runner}"
        runner = registry.create("runner", section.runner, {}, where, TargetError)
        if section.format not in runner.formats:
            yield f"{where}: takes {' or '.join(runner.formats)}, not {section.format}"
        # By convention a runner's options are its module's dataclass Options; checking them starts nothing.
        known = getattr(sys.modules[type(runner).__module__], "Options", None)
        if known is not None:
            try:
                options.read(known, section.options, where)
            except TargetError as problem:
                yield str(problem)


def _picks(target: Target) -> Iterator[str]:
    formats = {section.format for section in target.runtimes}
    for pick in target.picks:
        where = f"picks.{'/'.join(pick.tasks)}"
        if pick.format not in formats:
            yield f"{where}: no runtime takes {pick.format}"
        for side in ("dense", "reduced"):
            section = {"format": pick.format, "passes": getattr(pick, side)}
            try:
                passes = ArtifactSection.model_validate(section).passes
                steps = [registry.create("pass", name, given, where, TargetError) for name, given in passes]
            except (ValidationError, TargetError) as problem:
                yield one_line(f"{where}.{side}: {problem}")
                continue
            wrong = [name for (name, _), step in zip(passes, steps, strict=True) if step.format != pick.format]
            if wrong:
                yield f"{where}.{side}: {', '.join(wrong)} is no pass for {pick.format}"
        if not any(rule.pattern == pick.pattern and rule.pays for rule in target.sparsity):
            yield f"{where}: no rule says that the pattern it offers, {pick.pattern}, pays"


def _sparsity(target: Target) -> Iterator[str]:
    runners = [section.runner for section in target.runtimes]
    seen: set[tuple[str, str]] = set()
    for rule in target.sparsity:
        where = f"sparsity.{rule.pattern}"
        if rule.pays and rule.from_zeros is None:
            yield f"{where}: it pays, and from_zeros is not said"
        if not rule.pays and rule.from_zeros is not None:
            yield f"{where}: it does not pay, and from_zeros is said"
        for runner in rule.runtimes:
            if runner not in runners:
                yield f"{where}: runner {runner!r} is none of this target's ({', '.join(runners)})"
        for name in rule.needs:
            if name not in registry.table("pass"):
                yield f"{where}: needs {name!r}, which is no pass"
        for runner in rule.runtimes or runners:
            if (rule.pattern, runner) in seen:
                yield f"{where}: two rules are about runner {runner}"
            seen.add((rule.pattern, runner))
    for pattern in _JUDGED:
        if not any(rule.pattern == pattern for rule in target.sparsity):
            yield f"sparsity: no rule says whether {pattern} zeros pay"


def _energy(target: Target) -> Iterator[str]:
    section = target.energy
    if not section.meter and section.model is None and not (section.unknown or "").strip():
        yield "energy: neither a meter nor a model, and unknown does not say why"
    if section.model is not None:
        try:
            model = registry.create("meter", "model", section.model, "energy.model", TargetError)
        except TargetError as problem:
            yield str(problem)
            return
        coefficients = {**model.pj_per_mac, **model.pj_per_byte}
        if model.static_mw is not None:
            coefficients["static_mw"] = model.static_mw
        for name, coefficient in coefficients.items():
            if not coefficient.source.strip() or not coefficient.unit.strip():
                yield f"energy.model: {name} has no source or no unit"


def _sources(target: Target) -> Iterator[str]:
    named = [line.name for line in target.sources if line.name]
    for line in target.sources:
        where = f"sources.{line.name or line.figure}"
        if not line.url.startswith(("https://", "http://")):
            yield f"{where}: {line.url!r} is no URL"
        try:
            datetime.date.fromisoformat(line.date)
        except ValueError:
            yield f"{where}: date {line.date!r} is no YYYY-MM-DD"
        if line.name and named.count(line.name) > 1:
            yield f"{where}: the name is given twice"
