"""Results to a bundle, and a bundle's files back to results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from edgeredux import bundle
from edgeredux.artifact import Artifact, change_from_json
from edgeredux.decoding import with_past
from edgeredux.environment import describe
from edgeredux.errors import BundleError
from edgeredux.export_stage import Exported
from edgeredux.feeds import Feeder
from edgeredux.plan import Plan
from edgeredux.reduce_stage import Reduced
from edgeredux.report import Report, StepLine, TargetReport
from edgeredux.report_html import render
from edgeredux.workspace import Workspace

_SAMPLES = 4


def report(
    plan: Plan,
    reduced: Reduced,
    exported: Exported | None,
    targets: Sequence[TargetReport],
    steps: Sequence[StepLine],
    stage: bundle.Stage,
) -> Report:
    """The report of what was done."""
    interface = plan.interface
    counts = [line.parameters for line in reduced.lines if line.parameters is not None]
    parameters = plan.model.parameters() if plan.model is not None else None
    return Report(
        stage=stage,
        model={
            "name": interface.name,
            "source": interface.source,
            "sha256": plan.source.sha256,
            "task": interface.task,
            "max_length": interface.max_length,
            "parameters": parameters,
            "parameters_reduced": counts[-1] if counts else parameters,
        },
        recipe={**plan.recipe.to_json(), "sha256": plan.recipe.sha256()},
        artifacts=tuple(_placed(item) for item in exported.artifacts.values()) if exported is not None else (),
        targets=tuple(targets),
        steps=tuple(steps),
        environment=describe(),
        data=plan.feeder.data.describe(),
        repeatability=dict(reduced.repeatability),
        warnings=plan.notes,
    )


def _placed(artifact: Artifact) -> Artifact:
    """The artifact with its path inside the bundle."""
    from dataclasses import replace

    return replace(artifact, path=_place(artifact))


def _place(artifact: Artifact) -> Path:
    """Where an artifact lies in the bundle. One with weights in a file beside it keeps its names: it refers to them."""
    if artifact.data_path is not None:
        return Path(artifact.role) / artifact.name / artifact.path.name
    return Path(artifact.role) / f"{artifact.name}.{artifact.format}"


def publish(
    plan: Plan,
    reduced: Reduced,
    exported: Exported | None,
    found: Report,
    files: Mapping[str, Path],
    workspace: Workspace,
    out: Path,
) -> None:
    """Put the whole bundle together in the workspace and rename it to `out`."""
    fresh = workspace.root / "bundle"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    if reduced.folder is not None:
        bundle.place_folder(reduced.folder, fresh / "pytorch")
        for name in bundle.BESIDE:
            if (reduced.folder / name).is_file():
                bundle.place(reduced.folder / name, fresh / name)
    for (role, name), artifact in exported.artifacts.items() if exported is not None else ():
        places = [fresh / _place(artifact)]
        if role == "reduced" and name == plan.primary and artifact.format == "onnx":
            places.append(fresh / "model.onnx")
        for place in places:
            bundle.place(artifact.path, place)
            if artifact.data_path is not None:
                bundle.place(artifact.data_path, place.with_name(artifact.data_path.name))
    for name, path in files.items():
        bundle.place(path, fresh / name)
    if exported is not None:
        _write_samples(plan, reduced.feeder, exported, fresh / "samples")
    text = yaml.safe_dump(plan.recipe.to_json(), sort_keys=False, allow_unicode=True)
    (fresh / "recipe.yaml").write_text(text, encoding="utf-8")
    if found.stage == "profiled":
        (fresh / bundle.REPORT).write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
        (fresh / bundle.PAGE).write_text(render(found), encoding="utf-8")
    if workspace.log.is_file():
        shutil.copyfile(workspace.log, fresh / "log.txt")
    said = {
        "schema": 1,
        "stage": found.stage,
        "identity": plan.identity(),
        "only_targets": sorted({use.target.name for use in plan.uses}),
        "recipe": plan.recipe.to_json(),
        "model": found.model,
        "data": found.data,
        "primary": plan.primary,
        "interface": {
            "task": plan.interface.task,
            "inputs": list(plan.interface.input_names),
            "outputs": list(plan.interface.output_names),
            "pooling": plan.interface.pooling,
            "max_length": plan.interface.max_length,
        },
        "steps": [line.to_json() for line in found.steps],
        "artifacts": found.to_json()["artifacts"],
        "readings": [
            {"target": item.name, "dense": _readings(item.dense), "reduced": _readings(item.reduced)}
            for item in found.targets
        ],
        "environment": found.environment,
        "files": bundle.list_files(fresh),
    }
    (fresh / bundle.MANIFEST).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    out.parent.mkdir(parents=True, exist_ok=True)
    bundle.publish(fresh, out)


def _write_samples(plan: Plan, feeder: Feeder, exported: Exported, folder: Path) -> None:
    """A few real inputs per target, at its shapes, so that an installed model can be tried without the data."""
    import numpy as np

    folder.mkdir()
    first = {use.target.name: use for use in reversed(plan.uses)}
    for use in first.values():
        given = with_past(feeder, exported.artifacts["reduced", use.reduced].path)
        feeds = given.singles("calibration", plan.artifact(use.reduced).shapes, limit=_SAMPLES)
        named = {f"{index:03d}/{name}": value for index, feed in enumerate(feeds) for name, value in feed.items()}
        np.savez(folder / f"{use.target.name}.npz", **named)  # type: ignore[arg-type]


def _readings(profile: Mapping[str, Any]) -> dict[str, Any]:
    return {name: reading.to_json() for name, reading in profile.items()}


def artifact_from_json(folder: Path, item: Mapping[str, Any]) -> Artifact:
    """An artifact of a bundle, with the path it has there."""
    history = tuple(change_from_json(line) for line in item["history"])
    return Artifact(
        name=item["name"],
        role=item["role"],
        format=item["format"],
        path=folder / item["path"],
        sha256=item["sha256"],
        size_bytes=item["size_bytes"],
        history=history,
        parity=dict(item["parity"]),
    )


def finished(folder: Path, manifest: Mapping[str, Any]) -> Report:
    """The report of a finished bundle, its files verified first. Raises BundleError."""
    bundle.verify(folder, manifest)
    if manifest["stage"] != "profiled":
        return _unprofiled(manifest)
    try:
        return Report.from_json(json.loads((folder / bundle.REPORT).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as problem:
        raise BundleError(f"{folder}: {bundle.REPORT} cannot be read ({type(problem).__name__})") from problem


def _unprofiled(manifest: Mapping[str, Any]) -> Report:
    return Report(
        stage=manifest["stage"],
        model=dict(manifest["model"]),
        recipe=dict(manifest["recipe"]),
        artifacts=tuple(artifact_from_json(Path(), item) for item in manifest["artifacts"]),
        targets=(),
        steps=tuple(StepLine.from_json(line) for line in manifest["steps"]),
        environment=dict(manifest["environment"]),
        data=dict(manifest["data"]),
        repeatability={},
        warnings=(),
    )


def renew_page(folder: Path, manifest: Mapping[str, Any], found: Report) -> None:
    """Write report.html anew where this version draws it differently; everything else stays byte for byte."""
    if found.stage != "profiled":
        raise BundleError(f"{folder}: not profiled yet; first: edgeredux profile {folder}")
    page = render(found)
    if (folder / bundle.PAGE).read_text(encoding="utf-8") == page:
        return
    fresh = folder.with_name(f".{folder.name}.report")
    shutil.rmtree(fresh, ignore_errors=True)
    for item in manifest["files"]:
        if item["path"] != bundle.PAGE:
            bundle.place(folder / item["path"], fresh / item["path"])
    (fresh / bundle.PAGE).write_text(page, encoding="utf-8")
    said = {**manifest, "files": bundle.list_files(fresh)}
    (fresh / bundle.MANIFEST).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    bundle.publish(fresh, folder)


def clean(out: Path) -> None:
    """Remove the workspace that a kill between renaming and cleaning left beside a finished bundle."""
    left = out.with_name(out.name + ".partial")
    if (left / "identity.json").is_file():
        shutil.rmtree(left)
