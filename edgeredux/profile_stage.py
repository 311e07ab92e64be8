"""The judging stage: dense and reduced profiled together on every target, quality taken, budgets checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeredux import judge, registry, roofline, yardstick
from edgeredux.artifact import Artifact, sha256_file
from edgeredux.decoding import with_past
from edgeredux.errors import ArtifactError, EnvironmentProblem, InternalError
from edgeredux.export_stage import Exported
from edgeredux.feeds import Feeder
from edgeredux.plan import Plan
from edgeredux.quality import Yardstick, judge_outputs
from edgeredux.readings import AnyReading, Missing, Reading, from_json
from edgeredux.reduce_stage import Reduced
from edgeredux.report import StepLine, TargetReport
from edgeredux.seams import DeviceProfile, NamesDevice, ProfileJob, Progress
from edgeredux.uses import Use
from edgeredux.workspace import Workspace

# Simulators of hardware take seconds a sample; their quality is taken on fewer, and n says so.
_SIMULATED_SAMPLES = 32
_TRAIL_REPEATS = 15


@dataclass(frozen=True)
class Profiled:
    """One TargetReport per target and runtime, the pass lines with what they measured, files to keep per target."""

    targets: tuple[TargetReport, ...]
    lines: tuple[StepLine, ...]
    files: Mapping[str, Path]  # path inside the bundle -> file


def run(
    plan: Plan,
    exported: Exported,
    lines: Sequence[StepLine],
    found: Reduced,
    workspace: Workspace,
    progress: Progress,
) -> Profiled:
    """Profile every use, then the primary artifact pass by pass."""
    reports: list[TargetReport] = []
    files: dict[str, Path] = {}
    for index, use in enumerate(plan.uses):
        progress(f"profile {use.entry}", index, len(plan.uses) + 1)
        dense = exported.artifacts["dense", use.dense]
        reduced = exported.artifacts["reduced", use.reduced]
        report, kept = _profile(plan, use, dense, reduced, found, workspace)
        reports.append(report)
        files.update(kept)
    progress("profile passes", len(plan.uses), len(plan.uses) + 1)
    measured = _measure_trail(plan, exported, lines, found, workspace)
    progress("profile", len(plan.uses) + 1, len(plan.uses) + 1)
    return Profiled(tuple(reports), measured, files)


def job_for(
    plan: Plan,
    use: Use,
    artifacts: Mapping[str, tuple[Path, Feeder]],
    shapes: Mapping[str, int],
    scratch: Path,
    log: Path,
) -> tuple[ProfileJob, int | None]:
    """The job for a use's runner, and how many held-out samples its quality is taken on (None: all)."""
    recipe = plan.recipe
    limit = _SIMULATED_SAMPLES if use.runtime.runner in ("qnn", "vela", "qemu_arm64") else None
    measure = recipe.measure
    conditions = _conditions(plan, use, shapes)
    job = ProfileJob(
        artifacts={label: path for label, (path, _) in artifacts.items()},
        latency_feeds={
            label: feeder.latency(shapes, measure.batch, measure.sequence) for label, (_, feeder) in artifacts.items()
        },
        quality_feeds={label: feeder.singles("evaluation", shapes, limit) for label, (_, feeder) in artifacts.items()},
        options=use.runtime.options,
        hardware=use.target.hardware.model_dump(mode="json", exclude_none=True),
        threads=conditions["threads"],
        repeats=measure.repeats,
        warmup=measure.warmup,
        scratch=scratch,
        log=log,
        energy=use.target.energy.model_dump(mode="json"),
        latency_model=_model(use),
        samples_per_run=shapes.get("batch", measure.batch),
        target=use.target.name,
        conditions=conditions,
        next_tokens=plan.interface.task == "causal-lm",
    )
    return job, limit


def _model(use: Use) -> dict[str, Any] | None:
    section = use.target.latency_model
    return None if section is None else section.model_dump(mode="json")


def _conditions(plan: Plan, use: Use, shapes: Mapping[str, int]) -> dict[str, int]:
    measure = plan.recipe.measure
    return {
        "threads": use.target.threads or measure.threads or plan.recipe.threads,
        "batch": shapes.get("batch", measure.batch),
        "sequence": shapes.get("sequence", measure.sequence),
    }


def _profile(
    plan: Plan, use: Use, dense: Artifact, reduced: Artifact, found: Reduced, workspace: Workspace
) -> tuple[TargetReport, dict[str, Path]]:
    if use.unavailable is not None:
        return _unanswered(plan, use, dense, reduced, use.unavailable), {}
    try:
        return _answered(plan, use, dense, reduced, found, workspace)
    except (ArtifactError, EnvironmentProblem) as problem:
        if not use.lenient:
            raise
        return _unanswered(plan, use, dense, reduced, str(problem)), {}


def _unanswered(plan: Plan, use: Use, dense: Artifact, reduced: Artifact, why: str) -> TargetReport:
    """The report of a target of which nothing can be read, each reading with the reason."""
    absent = Missing(why)
    nothing = DeviceProfile(dict.fromkeys(("latency_ms", "throughput_per_s", "energy_mj", "memory_mb"), absent))
    said = {side: {"quality": absent.to_json()} for side in ("dense", "reduced")}
    found = _report(plan, use, dense, reduced, {"dense": nothing, "reduced": nothing}, said)
    if not use.absent:
        return found
    before, after = {**found.dense, "size_mb": absent}, {**found.reduced, "size_mb": absent}
    return replace(found, dense=before, reduced=after, ratios={}, error=why)


def _answered(
    plan: Plan, use: Use, dense: Artifact, reduced: Artifact, found: Reduced, workspace: Workspace
) -> tuple[TargetReport, dict[str, Path]]:
    shapes = plan.artifact(use.reduced).shapes
    if plan.artifact(use.dense).shapes != shapes:
        raise InternalError(f"{use.entry}: dense and reduced have different shapes")
    key = {
        "dense": dense.sha256,
        "reduced": reduced.sha256,
        "target": use.target.sha256(),
        "runner": use.runtime.runner,
        "measure": plan.recipe.measure.model_dump(mode="json"),
        "data": plan.feeder.data.sha256,
        "evaluation": plan.recipe.data.evaluation,
        "threads": plan.recipe.threads,
        "seed": plan.recipe.seed,
    }
    if isinstance(use.runner, NamesDevice):
        key["device"] = use.runner.device(use.runtime.options)

    def build(target: Path) -> None:
        scratch = target / "scratch"
        scratch.mkdir()
        given, taken = with_past(plan.feeder, dense.path), with_past(found.feeder, reduced.path)
        files = {"dense": (dense.path, given), "reduced": (reduced.path, taken)}
        job, limit = job_for(plan, use, files, shapes, scratch, workspace.log)
        profiles = use.runner.profile(job)
        measures = yardstick.pair(given, taken, found.reference, shapes, limit)
        said = {}
        for label in ("dense", "reduced"):
            said[label] = _store(target, label, profiles[label], measures[label], plan.recipe.seed)
        shutil.rmtree(scratch)
        (target / "profile.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")

    done = workspace.step(f"profile-{use.entry.replace(':', '-')}", key, build)
    said = json.loads((done / "profile.json").read_text(encoding="utf-8"))
    loaded = {label: _restore(done, said[label]) for label in ("dense", "reduced")}
    report = _report(plan, use, dense, reduced, loaded, {label: said[label]["quality"] for label in said})
    folder = f"targets/{use.entry.replace(':', '-')}"
    files = {
        f"{folder}/{label}/{name}": path for label, profile in loaded.items() for name, path in profile.files.items()
    }
    return report, files


def _store(target: Path, label: str, profile: DeviceProfile, measure: Yardstick, seed: int) -> dict[str, Any]:
    quality: dict[str, AnyReading] = {"quality": Missing("this runner does not execute the model")}
    if profile.outputs is not None and profile.outputs_source is not None:
        quality = judge_outputs(measure, profile.outputs, profile.outputs_source, profile.outputs_how, seed)
    elif profile.outputs_how:
        quality = {"quality": Missing(profile.outputs_how)}
    kept = {}
    for name, path in profile.files.items():
        place = target / "files" / label / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        kept[name] = place.relative_to(target).as_posix()
    said = asdict(replace(profile, outputs=None, readings={}, files={}))
    said["readings"] = {name: reading.to_json() for name, reading in profile.readings.items()}
    said["quality"] = {name: reading.to_json() for name, reading in quality.items()}
    said["files"] = kept
    return said


def _restore(done: Path, said: Mapping[str, Any]) -> DeviceProfile:
    fields = {name: value for name, value in said.items() if name != "quality"}
    fields["readings"] = {name: from_json(value) for name, value in said["readings"].items()}
    fields["files"] = {name: done / path for name, path in said["files"].items()}
    return DeviceProfile(**fields)


def _report(
    plan: Plan,
    use: Use,
    dense: Artifact,
    reduced: Artifact,
    profiles: Mapping[str, DeviceProfile],
    quality: Mapping[str, Any],
) -> TargetReport:
    a, b = profiles["dense"], profiles["reduced"]
    shapes = plan.artifact(use.reduced).shapes
    read = {label: {name: from_json(value) for name, value in quality[label].items()} for label in quality}
    bounds = {
        artifact.role: roofline.readings(artifact.path, use.target, profile.readings)
        for artifact, profile in ((dense, a), (reduced, b))
    }
    before = judge.complete({**a.readings, **bounds["dense"]}, dense.size_bytes, read["dense"])
    after = judge.complete({**b.readings, **bounds["reduced"]}, reduced.size_bytes, read["reduced"])
    shares = judge.ratios(before, after, a, b)
    measure = Yardstick(plan.interface.task, (), (), None, plan.interface.pooling, plan.interface.output_names)
    fallbacks: AnyReading = Missing("this runner does not say which operators fell back")
    if b.placement:
        fallbacks = Reading(
            float(len(b.fallbacks)), "operators", "measured", how="operators not on the target's device"
        )
    return TargetReport(
        name=use.entry,
        target=use.target.name,
        runtime=use.runtime.runner,
        artifact=reduced.name,
        dense_artifact=dense.name,
        artifact_sha256=reduced.sha256,
        dense_sha256=dense.sha256,
        dense=before,
        reduced=after,
        ratios=shares,
        checks=judge.checks(use.budget, before, after, shares, fallbacks, measure),
        placement={"dense": dict(a.placement), "reduced": dict(b.placement)},
        fallbacks={"dense": list(a.fallbacks), "reduced": list(b.fallbacks)},
        facts={"dense": dict(a.facts), "reduced": dict(b.facts)},
        machine={**dict(a.machine), **dict(b.machine), "conditions": _conditions(plan, use, shapes)},
        layers={"dense": [dict(row) for row in a.layers], "reduced": [dict(row) for row in b.layers]},
        latency_samples={"dense": list(a.latency_samples), "reduced": list(b.latency_samples)},
        sparsity=[rule.model_dump(mode="json") for rule in use.target.sparsity],
        description=use.target.description,
        sources=[line.model_dump(mode="json") for line in use.target.sources],
        notes=use.notes,
    )


def _measure_trail(
    plan: Plan, exported: Exported, lines: Sequence[StepLine], found: Reduced, workspace: Workspace
) -> tuple[StepLine, ...]:
    """Latency and quality after export and after each pass of the primary artifact, interleaved on this machine."""
    trail = exported.trail
    if len(trail) < 2 or trail[0][1].suffix != ".onnx":
        return tuple(lines)
    use = next((u for u in plan.uses if u.runtime.runner == "onnxruntime"), None)
    if use is None:
        return tuple(lines)
    shapes = plan.artifact(plan.primary or "").shapes
    labels = [f"{index:02d} {name}" for index, (name, _) in enumerate(trail)]
    key = {
        "trail": [sha256_file(path) for _, path in trail],
        "measure": plan.recipe.measure.model_dump(mode="json"),
        "threads": plan.recipe.threads,
        "data": plan.feeder.data.sha256,
        "target": use.target.sha256(),
    }

    def build(target: Path) -> None:
        scratch = target / "scratch"
        scratch.mkdir()
        paths = {label: (path, with_past(found.feeder, path)) for label, (_, path) in zip(labels, trail, strict=True)}
        job, _ = job_for(plan, use, paths, shapes, scratch, workspace.log)
        runner = registry.create("runner", "onnxruntime", {}, "pass by pass")
        profiles = runner.profile(replace(job, repeats=min(job.repeats, _TRAIL_REPEATS)))
        measure = yardstick.pair(plan.feeder, found.feeder, found.reference, shapes, None)["reduced"]
        said = {label: _store(target, label, profiles[label], measure, plan.recipe.seed) for label in labels}
        shutil.rmtree(scratch)
        (target / "trail.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")

    done = workspace.step("profile-passes", key, build)
    said = json.loads((done / "trail.json").read_text(encoding="utf-8"))
    trail_said = {f"{plan.primary}: {name}": said[label] for label, (name, _) in zip(labels, trail, strict=True)}
    measured = []
    for line in lines:
        if (line.name in trail_said and line.changed) or (line.stage == "export" and line.name in trail_said):
            item = trail_said[line.name]
            latency = from_json(item["readings"]["latency_ms"])
            quality = from_json(item["quality"]["quality"])
            measured.append(replace(line, latency_ms=latency, quality=quality))
        else:
            measured.append(line)
    return tuple(measured)
