"""The graph stage: every wanted artifact exported once per shape, then rewritten pass by pass, parity checked."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgeredux import loading
from edgeredux.artifact import Artifact, Change, change_from_json
from edgeredux.decoding import with_cache, with_past
from edgeredux.errors import ParityError
from edgeredux.feeds import Feeder
from edgeredux.model import Model
from edgeredux.plan import Plan
from edgeredux.reduce_stage import Reduced
from edgeredux.report import StepLine
from edgeredux.rewrite import rewrite
from edgeredux.seams import ExportJob, PassContext, Progress
from edgeredux.workspace import Workspace

Role = Literal["dense", "reduced"]


@dataclass(frozen=True)
class Exported:
    """The artifacts by (role, name), what export and passes changed, and the primary artifact's files pass by pass."""

    artifacts: Mapping[tuple[str, str], Artifact]
    lines: tuple[StepLine, ...]
    trail: tuple[tuple[str, Path], ...]  # (step name, file) of the primary reduced artifact, where kept


def run(plan: Plan, reduced: Reduced, workspace: Workspace, progress: Progress) -> Exported:
    """Export and rewrite what the targets need. Raises ParityError when an export does not agree with PyTorch."""
    artifacts: dict[tuple[str, str], Artifact] = {}
    lines: list[StepLine] = []
    trail: tuple[tuple[str, Path], ...] = ()
    wanted = plan.wanted()
    for index, (role, name) in enumerate(wanted):
        title = f"export {index + 1}/{len(wanted)} {role} {name}"
        progress(title, index, len(wanted))
        base = _base(plan, reduced, workspace, role, name)
        feeder = plan.feeder if role == "dense" else reduced.feeder
        feeder = with_past(feeder, base.path)
        artifact, made = _rewritten(plan, feeder, workspace, base, role, name, progress)
        artifacts[role, name] = artifact
        if role == "reduced":
            lines += made
        if role == "reduced" and name == plan.primary:
            trail = _trail(base, artifact)
    progress("export", len(wanted), len(wanted))
    return Exported(artifacts, tuple(lines), trail)


def _weights_key(plan: Plan, reduced: Reduced, role: Role) -> str:
    from edgeredux.bundle import list_files

    if role == "dense" or reduced.folder is None:
        return plan.source.sha256
    files = [item for item in list_files(reduced.folder) if item["path"].endswith((".safetensors", ".json"))]
    return json.dumps([(item["path"], item["sha256"]) for item in files])


def _base(plan: Plan, reduced: Reduced, workspace: Workspace, role: Role, name: str) -> Artifact:
    """The exported file before any pass; for a graph source the user's file itself (never written to)."""
    section = plan.artifact(name)
    if plan.model is None:
        assert plan.source.path is not None
        change = Change("import", False, f"the model was given as a finished {section.format} file")
        artifact = Artifact.of(plan.source.path, name, role, (change,))
        return replace(artifact, parity={"passed": True, "reason": "the file itself, as given"})
    model = (
        plan.model if role == "dense" or reduced.folder is None else loading.load_reduced(reduced.folder, plan.model)
    )
    if section.cache:
        model = with_cache(model)
    exporter = plan.exporters[name]
    feeder = plan.feeder.of(model)
    key = {
        "weights": _weights_key(plan, reduced, role),
        "data": plan.feeder.data.sha256,
        "exporter": repr(exporter),
        "shapes": section.shapes,
        "cache": section.cache,
        "max_length": plan.recipe.max_length,
        "task": model.task,
    }

    def build(target: Path) -> None:
        started = time.monotonic()
        change = _export(feeder, model, exporter, section.shapes, target / f"model.{section.format}", workspace.log)
        details = {**change.details, "seconds": round(time.monotonic() - started, 1)}
        said = replace(change, details=details)
        (target / "change.json").write_text(json.dumps(said.to_json(), indent=1) + "\n", encoding="utf-8")

    done = workspace.step(f"export-{role}-{section.format}{'-cache' if section.cache else ''}", key, build)
    said = json.loads((done / "change.json").read_text(encoding="utf-8"))
    change = change_from_json(said)
    artifact = Artifact.of(done / f"model.{section.format}", name, role, (change,))
    return replace(artifact, parity=dict(said["parity"]))


def _export(feeder: Feeder, model: Model, exporter: Any, shapes: Mapping[str, int], out: Path, log: Path) -> Change:
    job = ExportJob(model=model, samples=feeder.samples(shapes), out=out, shapes=shapes, log=log)
    change: Change = exporter.export(job)
    if not change.details.get("parity", {}).get("passed"):
        raise ParityError(f"{out.name}: the exporter did not show that it agrees with the PyTorch module")
    return change


def _rewritten(
    plan: Plan, feeder: Feeder, workspace: Workspace, base: Artifact, role: Role, name: str, progress: Progress
) -> tuple[Artifact, list[StepLine]]:
    section = plan.artifact(name)
    passes = plan.passes[name]
    key = {
        "base": base.sha256,
        "passes": [repr(step) for _, step in passes],
        "shapes": section.shapes,
        "data": plan.feeder.data.sha256,
        "calibration": plan.recipe.data.calibration,
        "seed": plan.recipe.seed,
        "threads": plan.recipe.threads,
    }

    def build(target: Path) -> None:
        scratch = target / "scratch"
        scratch.mkdir()
        context = PassContext(
            calibration=_calibration(feeder, section.shapes),
            log=workspace.log,
            scratch=scratch,
            threads=plan.recipe.threads,
            seed=plan.recipe.seed,
        )
        feeds = feeder.samples(section.shapes)
        made = rewrite(base, passes, context, feeds, target, progress)
        shutil.rmtree(scratch)
        last = made.path.relative_to(target).as_posix() if made.path.is_relative_to(target) else None
        said = {"last": last, "history": [change.to_json() for change in made.history], "parity": made.parity}
        (target / "made.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")

    done = workspace.step(f"passes-{role}-{name}", key, build)
    said = json.loads((done / "made.json").read_text(encoding="utf-8"))
    history = tuple(change_from_json(item) for item in said["history"])
    path = base.path if said["last"] is None else done / said["last"]
    artifact = replace(Artifact.of(path, name, role, history), parity=said["parity"])
    return artifact, [_line(name, change) for change in history]


def _calibration(feeder: Feeder, shapes: Mapping[str, int]) -> Sequence[Any]:
    if shapes:
        return feeder.singles("calibration", shapes)
    return feeder.batches("calibration")


def _line(artifact: str, change: Change) -> StepLine:
    details = dict(change.details)
    first = change.step in ("import", "torch-onnx", "optimum", "litert-torch")
    return StepLine(
        stage="export" if first else "pass",
        name=f"{artifact}: {change.step}",
        changed=change.changed,
        why=change.why,
        bytes_before=details.get("bytes_before"),
        bytes_after=details.get("bytes_after"),
        seconds=details.get("seconds"),
        details=details,
    )


def _trail(base: Artifact, artifact: Artifact) -> tuple[tuple[str, Path], ...]:
    """The files that the passes of the primary artifact left, in order, each under its pass's name."""
    found = [(base.history[-1].step, base.path)]
    for change in artifact.history[len(base.history) :]:
        name = change.details.get("file")
        if change.changed and isinstance(name, str):
            path = artifact.path.parent / name
            if path.is_file():
                found.append((change.step, path))
    return tuple(found)
