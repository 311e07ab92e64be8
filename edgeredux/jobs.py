"""The main flow, top to bottom: reduce, export, profile, report; and deploy. Each stage goes on from the one before.

`run` does all of it into one bundle. The stages on their own read the bundle that the stage before wrote, and put
back a bundle that says one stage more. Nothing here prints: progress goes to the given callable, answers are values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeredux import assemble, bundle, export_stage, plan, profile_stage, reduce_stage, target
from edgeredux import recipe as recipes
from edgeredux.artifact import Artifact
from edgeredux.errors import BundleError, RecipeError
from edgeredux.export_stage import Exported
from edgeredux.plan import Plan
from edgeredux.reduce_stage import Reduced
from edgeredux.report import Report, StepLine, TargetReport
from edgeredux.seams import Progress, silent
from edgeredux.workspace import Workspace


def run(
    recipe: str,
    *,
    model: str | None = None,
    data: str | None = None,
    targets: Sequence[str] | None = None,
    out: str | Path | None = None,
    settings: Sequence[str] = (),
    progress: Progress = silent,
) -> Report:
    """Reduce, export, rewrite, profile and judge; the bundle is at `out` (default: out/RECIPE) when this returns.

    `settings` are overrides as on the command line ("reduce.distill.steps=20"). A finished bundle of the same recipe,
    model, data and targets is verified and its report returned; a killed run goes on where it was. Raises an
    EdgereduxError when it could not run; a missed budget is in the Report (`passed`, `failures()`).
    """
    chosen = resolve_recipe(recipe, model, data, settings)
    folder = Path(out) if out is not None else Path("out") / chosen.name
    return _through(chosen, folder, targets, "profiled", progress)


def reduce(
    recipe: str,
    *,
    model: str | None = None,
    data: str | None = None,
    out: str | Path | None = None,
    settings: Sequence[str] = (),
    progress: Progress = silent,
) -> Report:
    """The PyTorch stage alone: a bundle with the reduced model in `pytorch/`, and what each step changed."""
    chosen = resolve_recipe(recipe, model, data, settings)
    folder = Path(out) if out is not None else Path("out") / chosen.name
    return _through(chosen, folder, None, "reduced", progress)


def export(
    folder: str | Path,
    *,
    targets: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    progress: Progress = silent,
) -> Report:
    """Export and rewrite what `reduce` wrote; the bundle then holds every artifact the recipe's targets need."""
    return _again(Path(folder), targets, settings, "exported", progress)


def profile(
    folder: str | Path,
    *,
    targets: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    progress: Progress = silent,
) -> Report:
    """Profile dense beside reduced on the recipe's targets (or those named), judge, and write the report.

    Every target is answered, with readings or with the reason why there are none; "all" are the shipped ones.
    """
    return _again(Path(folder), targets, settings, "profiled", progress)


def report(folder: str | Path) -> Report:
    """Verify a profiled bundle's files, judge its readings again, and write report.html anew from report.json."""
    place = Path(folder)
    manifest = bundle.read_manifest(place)
    found = assemble.finished(place, manifest)
    assemble.renew_page(place, manifest, found)
    return found


def resolve_recipe(recipe: str, model: str | None, data: str | None, settings: Sequence[str]) -> recipes.Recipe:
    """The recipe with --model, --data and --set applied. Raises RecipeError."""
    overrides = list(settings)
    path = recipes.find(recipe)
    written = recipes.read_yaml(path, "recipe")
    if model is not None:
        written["model"] = model
    if data is not None:
        section = written.setdefault("data", {})
        if not isinstance(section, dict):
            raise RecipeError(f"recipe {recipe}: data must be a section")
        section["source"] = data
    for override in overrides:
        recipes.apply(written, override)
    return recipes.parse(written, f"recipe {recipe}")


def _through(
    recipe: recipes.Recipe, out: Path, targets: Sequence[str] | None, upto: bundle.Stage, progress: Progress
) -> Report:
    with _Checking() as log:
        progress("checking", 0, 1)
        made = plan.make(recipe, out, only_targets=targets, upto=upto, log=log, progress=progress)
        progress("checking", 1, 1)
    identity = made.identity()
    if (out / bundle.MANIFEST).is_file():
        manifest = bundle.read_manifest(out)
        if manifest["identity"] != identity:
            keys = {*manifest["identity"], *identity}
            changed = ", ".join(sorted(k for k in keys if manifest["identity"].get(k) != identity.get(k)))
            raise BundleError(f"{out}: holds a bundle of something else (differs in {changed}); choose another --out")
        if bundle.STAGES.index(manifest["stage"]) >= bundle.STAGES.index(upto):
            assemble.clean(out)
            return assemble.finished(out, manifest)
    with Workspace(out, identity) as workspace:
        reduced = reduce_stage.run(made, workspace, progress)
        exported = export_stage.run(made, reduced, workspace, progress) if upto != "reduced" else None
        return _finish(made, reduced, exported, workspace, upto, out, progress)


def _again(
    folder: Path, targets: Sequence[str] | None, settings: Sequence[str], upto: bundle.Stage, progress: Progress
) -> Report:
    """The next stage on what a bundle holds: reduced model and artifacts are taken from it, not made again."""
    manifest = bundle.read_manifest(folder)
    if upto == "profiled" and manifest["stage"] == "reduced":
        raise BundleError(f"{folder}: not exported yet; first: edgeredux export {folder}")
    bundle.verify(folder, manifest)
    written = {name: value for name, value in manifest["recipe"].items() if name != "sha256"}
    for override in settings:
        recipes.apply(written, override)
    recipe = recipes.parse(written, f"{folder}: recipe")
    files = {target.load(name).name: name for name in recipe.targets}  # a target of the user's is named by its file
    only = targets if targets else [files.get(name, name) for name in manifest["only_targets"]]
    beside = folder.with_name(f"{folder.name}.next")
    there: dict[str, list[str]] | None = None
    if upto == "profiled":
        names = [(item["role"], item["name"]) for item in manifest["artifacts"]]
        there = {role: [name for kind, name in names if kind == role] for role in ("dense", "reduced")}
    with _Checking() as log:
        progress("checking", 0, 1)
        made = plan.make(recipe, beside, only_targets=only, upto=upto, log=log, progress=progress, there=there)
        progress("checking", 1, 1)
    if made.source.sha256 != manifest["identity"]["model"]:
        raise BundleError(f"{folder}: the dense model {recipe.model} is not the one this bundle was made from")
    lines = tuple(StepLine.from_json(line) for line in manifest["steps"])
    with Workspace(beside, {**made.identity(), "bundle": manifest["identity"], "stage": upto}) as workspace:
        reduced = reduce_stage.go_on(made, workspace, folder / "pytorch", lines, progress)
        if upto == "exported":
            exported = export_stage.run(made, reduced, workspace, progress)
        else:
            exported = _exported_of(folder, manifest, made, lines)
        return _finish(made, reduced, exported, workspace, upto, folder, progress)


def _exported_of(folder: Path, manifest: Mapping[str, Any], made: Plan, lines: Sequence[StepLine]) -> Exported:
    artifacts: dict[tuple[str, str], Artifact] = {}
    for item in manifest["artifacts"]:
        artifacts[item["role"], item["name"]] = assemble.artifact_from_json(folder, item)
    for role, name in made.wanted():
        if (role, name) not in artifacts:
            raise BundleError(f"{folder}: it holds no {role} artifact {name!r}; first: edgeredux export {folder}")
    return Exported(artifacts, tuple(line for line in lines if line.stage != "reduce"), ())


def _finish(
    made: Plan,
    reduced: Reduced,
    exported: Exported | None,
    workspace: Workspace,
    upto: bundle.Stage,
    out: Path,
    progress: Progress,
) -> Report:
    """Profile when asked for, write the report, and put the whole bundle in place."""
    targets: tuple[TargetReport, ...] = ()
    files: dict[str, Path] = {}
    lines: tuple[StepLine, ...] = exported.lines if exported is not None else ()
    if upto == "profiled":
        assert exported is not None
        profiled = profile_stage.run(made, exported, lines, reduced, workspace, progress)
        targets, lines, files = profiled.targets, profiled.lines, dict(profiled.files)
    found = assemble.report(made, reduced, exported, targets, (*reduced.lines, *lines), upto)
    assemble.publish(made, reduced, exported, found, files, workspace, out)
    workspace.remove()
    return found


class _Checking:
    """A log for the checks, beside nothing of the user's: deleted when they pass or fail."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edgeredux-check-")

    def __enter__(self) -> Path:
        return Path(self._folder.name) / "log.txt"

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
