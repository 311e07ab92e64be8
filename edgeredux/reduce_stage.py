"""The PyTorch stage: reduce steps one after another, each kept in the workspace as a folder that `load` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeredux import loading, yardstick
from edgeredux.artifact import Change
from edgeredux.feeds import Feeder
from edgeredux.model import Model
from edgeredux.plan import Plan
from edgeredux.quality import judge_answers
from edgeredux.readings import AnyReading, from_json, summarise
from edgeredux.report import StepLine
from edgeredux.seams import Progress, ReduceContext, RewritesTokenizer
from edgeredux.workspace import Workspace

_LATENCY_ROUNDS = 12


@dataclass(frozen=True)
class Reduced:
    """The reduced model's folder (None when the source is a graph) and what each step changed."""

    folder: Path | None
    lines: tuple[StepLine, ...]
    reference: tuple[Any, ...]  # the dense model's answers to the held-out samples
    repeatability: Mapping[str, AnyReading]
    feeder: Feeder  # the plan's samples as the reduced model takes them: a step may have rewritten the tokenizer


def reference_key(plan: Plan) -> dict[str, Any]:
    """All that the dense model's answers depend on."""
    recipe = plan.recipe
    return {
        "model": plan.source.sha256,
        "data": plan.feeder.data.sha256,
        "evaluation": recipe.data.evaluation,
        "max_length": recipe.max_length,
        "batch": recipe.data.batch,
        "task": plan.interface.task,
        "threads": recipe.threads,
        "seed": recipe.seed,
    }


def run(plan: Plan, workspace: Workspace, progress: Progress) -> Reduced:
    """Take the dense model's answers, apply every step, measure what each changed."""
    answers, repeatability = dense_reference(plan, workspace, progress)
    if plan.model is None:
        return _skipped(plan, answers, repeatability)
    import torch

    torch.set_num_threads(plan.recipe.threads)
    torch.manual_seed(plan.recipe.seed)
    model = plan.model
    folder: Path | None = None
    key: dict[str, Any] = {**reference_key(plan), "data_section": plan.recipe.data.model_dump(mode="json")}
    lines: list[StepLine] = []
    for index, (name, options, step) in enumerate(plan.steps):
        key = {"before": key, "step": name, "options": options, "repr": repr(step)}

        def build(
            target: Path, index: int = index, name: str = name, step: Any = step, before: Path | None = folder
        ) -> None:
            current = _load(plan, before)
            changed = _apply(plan, current, step, target, progress, f"{index + 1}/{len(plan.steps)} {name}")
            line = _line(plan, name, current, *changed, answers)
            (target / "line.json").write_text(json.dumps(line, indent=1) + "\n", encoding="utf-8")

        done = workspace.step(f"reduce-{index}-{name}", key, build, resumable=True)
        folder = done / "model"
        lines.append(StepLine.from_json(json.loads((done / "line.json").read_text(encoding="utf-8"))))
    if folder is None:
        folder = workspace.step("reduce-none", key, lambda target: loading.save(model, target / "model")) / "model"
    return Reduced(folder, tuple(lines), answers, repeatability, _feeder(plan, folder))


def dense_reference(
    plan: Plan, workspace: Workspace, progress: Progress
) -> tuple[tuple[Any, ...], Mapping[str, AnyReading]]:
    """The dense model's answers to the held-out samples and its repeatability, taken once."""

    def build(target: Path) -> None:
        progress("dense model: answers to held-out data", 0, 1)
        if plan.model is not None:
            reference = yardstick.of_model(plan.model, plan.feeder, plan.recipe.seed)
        else:
            assert plan.source.path is not None
            reference = yardstick.of_graph(
                plan.source.path, plan.interface, plan.feeder, plan.recipe.seed, workspace.log
            )
        yardstick.save(reference, target / "answers.npz")
        said = {name: value.to_json() for name, value in reference.repeatability.items()}
        (target / "repeatability.json").write_text(json.dumps(said) + "\n", encoding="utf-8")
        progress("dense model: answers to held-out data", 1, 1)

    done = workspace.step("reference", reference_key(plan), build)
    said = json.loads((done / "repeatability.json").read_text(encoding="utf-8"))
    return yardstick.load_answers(done / "answers.npz"), {name: from_json(value) for name, value in said.items()}


def _feeder(plan: Plan, folder: Path) -> Feeder:
    assert plan.model is not None
    return plan.feeder.of(replace(plan.model, tokenizer=loading.reduced_tokenizer(folder, plan.model)))


def _teacher(plan: Plan, student: Model) -> Model:
    """The dense model, with the student's tokens where a step before rewrote the tokenizer."""
    assert plan.model is not None
    if student.tokenizer is plan.model.tokenizer:
        return plan.model
    step = next(step for _, _, step in plan.steps if isinstance(step, RewritesTokenizer))
    return step.same_tokens(plan.model, student)


def _load(plan: Plan, folder: Path | None) -> Model:
    assert plan.model is not None
    return plan.model if folder is None else loading.load_reduced(folder, plan.model)


def _apply(
    plan: Plan, model: Model, step: Any, target: Path, progress: Progress, title: str
) -> tuple[Model, Change, float]:
    import shutil
    import time

    feeder = plan.feeder.of(model)
    scratch = target / "scratch"
    scratch.mkdir(exist_ok=True)
    context = ReduceContext(
        teacher=_teacher(plan, model),
        calibration=feeder.batches("calibration"),
        training=feeder.training(),
        seed=plan.recipe.seed,
        threads=plan.recipe.threads,
        scratch=scratch,
        progress=lambda text, done, total: progress(f"reduce {title}: {text}", done, total),
    )
    started = time.monotonic()
    reduced, change = step.apply(model, context)
    seconds = time.monotonic() - started
    shutil.rmtree(target / "model", ignore_errors=True)  # a kill may have come while it was being saved
    loading.save(reduced, target / "model")
    shutil.rmtree(scratch)
    return reduced, change, seconds


def _line(
    plan: Plan, name: str, before: Model, after: Model, change: Change, seconds: float, answers: tuple[Any, ...]
) -> dict[str, Any]:
    import torch

    with torch.random.fork_rng():
        measure = yardstick.pair(plan.feeder, plan.feeder.of(after), answers, {}, None)["reduced"]
        given = [yardstick.take(after, after.run(feed), feed) for feed in measure.feeds]
    quality = judge_answers(measure, given, "measured", "PyTorch float32, held-out data", plan.recipe.seed)
    latency = _latency(plan, after)
    line = StepLine(
        stage="reduce",
        name=name,
        changed=change.changed,
        why=change.why,
        bytes_before=4 * before.parameters(),
        bytes_after=4 * after.parameters(),
        latency_ms=latency,
        quality=quality["quality"],
        parameters=after.parameters(),
        seconds=seconds,
        details=dict(change.details),
    )
    return line.to_json()


def _latency(plan: Plan, model: Model) -> AnyReading:
    import time

    settings = plan.recipe.measure
    feeds = plan.feeder.of(model).latency({}, settings.batch, settings.sequence, count=2)
    samples = []
    for index in range(_LATENCY_ROUNDS + 2):
        started = time.perf_counter()
        model.run(feeds[index % len(feeds)])
        if index >= 2:
            samples.append(1000 * (time.perf_counter() - started))
    how = f"PyTorch eager, {plan.recipe.threads} threads, not interleaved: for orientation between steps"
    return summarise(samples, "ms", "measured", how)


def go_on(plan: Plan, workspace: Workspace, folder: Path, lines: Sequence[StepLine], progress: Progress) -> Reduced:
    """The Reduced that an earlier command left in `folder`, with the dense model's answers taken again."""
    if plan.model is None:
        return run(plan, workspace, progress)
    answers, repeatability = dense_reference(plan, workspace, progress)
    kept = tuple(line for line in lines if line.stage == "reduce")
    return Reduced(folder, kept, answers, repeatability, _feeder(plan, folder))


def _skipped(plan: Plan, answers: tuple[Any, ...], repeatability: Mapping[str, AnyReading]) -> Reduced:
    """The Reduced of a graph source: nothing was done, and the lines say so."""
    why = f"skipped: the model is a finished {plan.source.kind} graph, not PyTorch"
    lines = tuple(StepLine(stage="reduce", name=name, changed=False, why=why) for name, _ in plan.recipe.reduce)
    return Reduced(None, lines, answers, repeatability, plan.feeder)
