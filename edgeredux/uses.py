"""Which runtime of which target compares which two artifacts: as the recipe says, else what pays on the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from edgeredux import paying, registry
from edgeredux import target as targets
from edgeredux.errors import EnvironmentProblem, RecipeError, TargetError
from edgeredux.recipe import ArtifactSection, Budget, Recipe, UseSection
from edgeredux.seams import Runner
from edgeredux.target import PickSection, RuntimeSection, Target

Targets: TypeAlias = Mapping[str, Mapping[str, UseSection]]  # as in a recipe
There: TypeAlias = Mapping[str, Sequence[str]]  # role -> names of the artifacts that a bundle holds
_ANY_DEVICE = ("replay", "estimate")  # runners that say nothing of what a device takes
_ATTACHED = ("ssh",)  # runners whose device the target's file may leave unnamed
_TIMED = ("latency", "throughput", "energy", "time_to_first", "prefill", "decode")  # metrics that need a clock
ALL = "all"  # every shipped target, for artifacts that are there


@dataclass(frozen=True)
class Use:
    """One runtime of one target, the artifacts compared there, and the budget (the target's, then the recipe's).

    `lenient`: what the runner cannot do is a reason in the report, not the end. `unavailable`: the reason, where it is
    known before. `absent`: it is that no artifact is there for it, so nothing of what is there is judged.
    `notes`: why these artifacts, and which zeros are not sold there.
    """

    target: Target
    runtime: RuntimeSection
    runner: Runner
    entry: str
    dense: str
    reduced: str
    budget: Budget
    lenient: bool = False
    unavailable: str | None = None
    absent: bool = False
    notes: tuple[str, ...] = ()


def choose(
    recipe: Recipe,
    only: Sequence[str] | None,
    *,
    steps: paying.Steps,
    task: Callable[[], str],
    there: There | None,
    runs: bool,
) -> tuple[Recipe, tuple[Use, ...]]:
    """The uses, and the recipe with what was chosen for targets that it does not name.

    `there`: the artifacts of a bundle, when no others will be made; then every target gets an answer. `runs`: a
    runtime is needed now.
    Raises RecipeError or TargetError; EnvironmentProblem where nothing can run an artifact that is yet to be made.
    """
    uses: list[Use] = []
    written = recipe.targets  # what was chosen for one target is no model for the next
    for name in _named(recipe, only, there is not None):
        target = targets.load(name)
        said = written.get(target.name) or written.get(name)
        if said is not None:
            uses += _as_said(recipe, target, said, steps, there)
        elif there is not None:
            uses += _of_what_is_there(recipe, target, steps, there, alone=ALL not in (only or ()))
        elif like := _like(written, target, runs):
            _refuse(recipe, target, like, steps)
            uses += _as_said(recipe, target, like, steps, None)
        else:
            pick, runtimes = _pick(recipe, target, task())
            recipe, section = _with_artifacts(recipe, target, pick)
            _refuse(recipe, target, {runtimes[0].runner: section}, steps)
            answering, why = _answering(runtimes) if runs else (runtimes[:1], None)
            if why is not None:
                raise EnvironmentProblem(f"target {target.name}: {why}")
            chosen = {runtime.runner: _with_budget(section, target, runtime) for runtime in answering}
            note = f"{pick.why} (what {target.name}'s file picks; the recipe names no artifacts for it)"
            notes = (note, *_offered(target, answering[0], pick, steps))
            for index, runtime in enumerate(answering):
                said_once = notes if index == 0 else ()
                uses.append(_use(recipe, target, runtime, chosen[runtime.runner], steps, said_once))
            recipe = recipe.model_copy(update={"targets": {**recipe.targets, target.name: chosen}})
    entries = [use.entry for use in uses]
    if not entries:
        raise RecipeError(f"recipe {recipe.name}: no targets; name some in the recipe or with --target")
    if len(set(entries)) != len(entries):
        raise TargetError(f"a target is named twice: {', '.join(sorted(entries))}")
    return recipe, tuple(uses)


def _named(recipe: Recipe, only: Sequence[str] | None, finished: bool) -> list[str]:
    names: list[str] = []
    for name in only if only else recipe.targets:
        if name == ALL and not finished:
            raise TargetError(f"target {ALL}: is for profile, of a bundle whose artifacts are there; name targets here")
        names += sorted(targets.shipped()) if name == ALL else [name]
    return names


def _as_said(
    recipe: Recipe, target: Target, said: dict[str, UseSection], steps: paying.Steps, there: There | None
) -> Iterator[Use]:
    where = f"recipe {recipe.name}: targets.{target.name}"
    for runner_name, section in said.items():
        runtime = target.runtime(runner_name, where)
        _runner(target, runtime)
        for side in (section.dense, section.reduced):
            if recipe.artifacts[section.dense].cache != recipe.artifacts[section.reduced].cache:
                raise RecipeError(f"{where}.{runner_name}: one artifact has cache: true, the other has not")
            if recipe.artifacts[side].format != runtime.format:
                given = recipe.artifacts[side].format
                raise RecipeError(f"{where}.{runner_name}: takes {runtime.format}, artifact {side!r} is {given}")
        if there is None or _is_there(section, there):
            yield _use(recipe, target, runtime, section, steps, (), lenient=there is not None)
        else:
            why = (
                f"the bundle does not hold the artifacts {section.dense} and {section.reduced}; first: edgeredux export"
            )
            yield _absent(recipe, target, runtime, steps, there, f"{why} DIR --target {target.name}")


def _use(
    recipe: Recipe,
    target: Target,
    runtime: RuntimeSection,
    section: UseSection,
    steps: paying.Steps,
    notes: Sequence[str],
    *,
    lenient: bool = False,
    unavailable: str | None = None,
    whole_budget: bool = False,
) -> Use:
    own = _asked_of(target, runtime) if whole_budget or runtime == target.runtimes[0] else {}
    unsold = [f"not sold: {line}" for line in _unpaid(recipe, target, runtime.runner, section, steps)]
    return Use(
        target,
        runtime,
        _runner(target, runtime),
        target.entry(runtime.runner),
        section.dense,
        section.reduced,
        {**own, **section.budget},
        lenient,
        unavailable,
        notes=(*notes, *unsold),
    )


def _asked_of(target: Target, runtime: RuntimeSection) -> Budget:
    """The target's default budget; a runner that takes no time is not asked for any."""
    if not getattr(_runner(target, runtime), "untimed", False):
        return dict(target.budget)
    return {name: limit for name, limit in target.budget.items() if not name.startswith(_TIMED)}


def _with_budget(section: UseSection, target: Target, runtime: RuntimeSection) -> UseSection:
    """A pair of artifacts with the target's default budget, for the recipe in the bundle."""
    return section.model_copy(update={"budget": _asked_of(target, runtime)})


def _runner(target: Target, runtime: RuntimeSection) -> Runner:
    runner: Runner = registry.create("runner", runtime.runner, {}, f"target {target.name}")
    if runtime.format not in runner.formats:
        takes = " or ".join(runner.formats)
        raise TargetError(f"target {target.name}: runner {runtime.runner} takes {takes}, not {runtime.format}")
    return runner


def _unpaid(recipe: Recipe, target: Target, runner: str, section: UseSection, steps: paying.Steps) -> list[str]:
    passes = [name for name, _ in recipe.artifacts[section.reduced].passes]
    lines = (paying.unpaid(target, runner, zeros, passes) for zeros in paying.made_by(steps))
    return [line for line in lines if line is not None]


def _refuse(recipe: Recipe, target: Target, chosen: dict[str, UseSection], steps: paying.Steps) -> None:
    """A target that the recipe does not name is sold nothing that does not pay there."""
    for runner, section in chosen.items():
        for line in _unpaid(recipe, target, runner, section, steps):
            raise RecipeError(
                f"recipe {recipe.name}: reduce: {line}; name {target.name} under targets: to have them all the same"
            )


def _of_what_is_there(recipe: Recipe, target: Target, steps: paying.Steps, there: There, alone: bool) -> Iterator[Use]:
    """For each format that the target takes and the bundle has: the first runtime that can be used now.

    Unless it was named `alone`: which of many targets the attached device is, nobody has said.
    """
    formats = dict.fromkeys(runtime.format for runtime in target.runtimes)
    pairs = {form: pair for form in formats if (pair := _pair(recipe, target, form, there)) is not None}
    for form, section in pairs.items():
        runtimes = [runtime for runtime in target.runtimes if runtime.format == form]
        vague = (
            [] if alone else [r for r in runtimes if r.runner in _ATTACHED and not set(r.options) & {"host", "serial"}]
        )
        answering, why = _answering([runtime for runtime in runtimes if runtime not in vague])
        if vague and (why is not None or not answering):
            said = f"runner {vague[0].runner}: not asked for all targets at once; name the one that the device is"
            answering, why = vague[:1], "; ".join(filter(None, (said, why)))
        for runtime in answering:
            yield _use(recipe, target, runtime, section, steps, (), lenient=True, unavailable=why, whole_budget=True)
    if not pairs:
        have = ", ".join(sorted({recipe.artifacts[name].format for name in there["reduced"]}))
        why = f"it takes {' or '.join(formats)}, and the bundle holds {have}; first: edgeredux export DIR --target"
        yield _absent(recipe, target, target.runtimes[0], steps, there, f"{why} {target.name}")


def _absent(
    recipe: Recipe, target: Target, runtime: RuntimeSection, steps: paying.Steps, there: There, why: str
) -> Use:
    """A use that cannot be: the bundle holds nothing for it. It quotes what the bundle holds, and judges nothing."""
    section = UseSection(dense=next(iter(there["dense"])), reduced=next(iter(there["reduced"])))
    made = _use(recipe, target, runtime, section, steps, (), lenient=True, unavailable=why)
    return replace(made, absent=True, budget={}, notes=())


def _is_there(section: UseSection, there: There) -> bool:
    return section.dense in there["dense"] and section.reduced in there["reduced"]


def _answering(runtimes: Sequence[RuntimeSection]) -> tuple[list[RuntimeSection], str | None]:
    """The first runtime that can be used here and now; where it takes no time, the next one that can, too.

    With none, the first of all (where there is one) and every reason.
    """
    found: list[RuntimeSection] = []
    reasons = []
    for runtime in runtimes:
        runner: Runner = registry.create("runner", runtime.runner, {}, "target")
        try:
            runner.check(runtime.options)
        except EnvironmentProblem as problem:
            reasons.append(str(problem))
            continue
        found.append(runtime)
        if not getattr(runner, "untimed", False):
            break
    return (found, None) if found else (list(runtimes[:1]), "; ".join(reasons))


def _pair(recipe: Recipe, target: Target, form: str, there: There) -> UseSection | None:
    """Two artifacts of this format that a recipe's target compares: under one of these runners, else under any."""
    runners = [r.runner for r in target.runtimes if r.format == form and r.runner not in _ANY_DEVICE]
    found = [
        (runner, use)
        for uses in recipe.targets.values()
        for runner, use in uses.items()
        if recipe.artifacts[use.reduced].format == form and _is_there(use, there)
    ]
    found.sort(key=lambda item: item[0] not in runners)
    return next((UseSection(dense=use.dense, reduced=use.reduced) for _, use in found), None)


def _like(written: Targets, target: Target, runs: bool) -> dict[str, UseSection]:
    """The artifacts that a named target with the same runner compares; also for what tells the time it does not."""
    found: dict[str, UseSection] = {}
    for runtime in target.runtimes:
        for uses in written.values():
            if runtime.runner in uses and runtime.runner not in (*found, *_ANY_DEVICE):
                model = uses[runtime.runner]
                pair = UseSection(dense=model.dense, reduced=model.reduced)
                beside = [runtime]
                if runs:
                    same = [other for other in target.runtimes if other.format == runtime.format]
                    usable, why = _answering(same[same.index(runtime) :])
                    beside += [other for other in usable if why is None and other != runtime]
                found |= {other.runner: _with_budget(pair, target, other) for other in beside}
    return found


def _pick(recipe: Recipe, target: Target, task: str) -> tuple[PickSection, list[RuntimeSection]]:
    """What the target's file picks for this task, and the runtimes that take it."""
    picks = [pick for pick in target.picks if task in pick.tasks]
    if not picks:
        runners = ", ".join(runtime.runner for runtime in target.runtimes)
        raise TargetError(
            f"target {target.name}: recipe {recipe.name} has no artifacts for its runner ({runners}), and its file "
            f"picks none for {task}; say which under targets: in the recipe"
        )
    runtimes = [runtime for runtime in target.runtimes if runtime.format == picks[0].format]
    if not runtimes:
        raise TargetError(f"target {target.name}: picks {picks[0].format}, and none of its runtimes takes that")
    return picks[0], runtimes


def _with_artifacts(recipe: Recipe, target: Target, pick: PickSection) -> tuple[Recipe, UseSection]:
    """The recipe with the picked artifacts: its own where one says the same, else new ones by the target's name."""
    artifacts = dict(recipe.artifacts)
    shapes = dict(pick.shapes)
    if "sequence" in shapes:  # where texts are cut: a longer one would read more than the dense model
        shapes["sequence"] = recipe.max_length
    names = {}
    alike = pick.dense == pick.reduced
    for side in ("dense", "reduced"):
        said: dict[str, Any] = {
            "format": pick.format,
            "cache": pick.cache,
            "shapes": shapes,
            "passes": getattr(pick, side),
        }
        section = ArtifactSection.model_validate(said)
        fresh = target.name if alike else f"{target.name}-{side}"
        name = next((name for name, made in artifacts.items() if made == section), fresh)
        artifacts[name] = section
        names[side] = name
    return recipe.model_copy(update={"artifacts": artifacts}), UseSection(**names)


def _offered(target: Target, runtime: RuntimeSection, pick: PickSection, steps: paying.Steps) -> list[str]:
    """The pattern that pays there, where the recipe does not make such zeros already."""
    if any(zeros.pattern == pick.pattern for zeros in paying.made_by(steps)):
        return []
    rule = paying.rule_for(target, runtime.runner, pick.pattern)
    share = f" from {rule.from_zeros:.0%} on" if rule is not None and rule.from_zeros else ""
    ground = f": {rule.source}" if rule is not None else ""
    return [f"offered on {target.name}: {pick.pattern} zeros{share}{ground}"]
