"""Everything that can be checked before the first second of work, and the result of having checked it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgeredux import __version__, bundle, graph_source, loading, registry, sources, uses
from edgeredux.decoding import with_cache
from edgeredux.errors import DataError, EnvironmentProblem, RecipeError, StorageError, TargetError
from edgeredux.feeds import Feeder, make_feeder
from edgeredux.model import Interface, Model
from edgeredux.recipe import ArtifactSection, Recipe
from edgeredux.seams import Exporter, Pass, Progress, ReduceStep, silent
from edgeredux.sources import Source
from edgeredux.uses import Use


@dataclass(frozen=True)
class Plan:
    """What will be done. Nothing in it is checked again later."""

    recipe: Recipe
    source: Source
    interface: Interface  # a Model, unless the source is a graph
    feeder: Feeder
    uses: tuple[Use, ...]
    steps: tuple[tuple[str, dict[str, Any], ReduceStep], ...]
    exporters: Mapping[str, Exporter]  # by artifact name; empty for a graph source
    passes: Mapping[str, tuple[tuple[str, Pass], ...]]  # by artifact name
    out: Path
    notes: tuple[str, ...]

    @property
    def model(self) -> Model | None:
        """The dense PyTorch model; None when the source is a graph."""
        return self.interface if isinstance(self.interface, Model) else None

    def artifact(self, name: str) -> ArtifactSection:
        """The recipe's section of an artifact."""
        return self.recipe.artifacts[name]

    def wanted(self) -> list[tuple[Literal["dense", "reduced"], str]]:
        """The artifacts the uses need, each once, in the recipe's order."""
        dense = {use.dense for use in self.uses}
        reduced = {use.reduced for use in self.uses}
        if self.primary is not None:
            reduced.add(self.primary)
        found: list[tuple[Literal["dense", "reduced"], str]] = [
            ("dense", n) for n in self.recipe.artifacts if n in dense
        ]
        return found + [("reduced", n) for n in self.recipe.artifacts if n in reduced]

    @property
    def primary(self) -> str | None:
        """The reduced artifact at the bundle's top: the recipe's choice, else the first ONNX one in use."""
        if self.recipe.primary is not None:
            usable = self.source.kind not in ("onnx", "tflite")
            if usable or self.artifact(self.recipe.primary).format == self.source.kind:
                return self.recipe.primary
        return next((use.reduced for use in self.uses if use.runtime.format == "onnx"), None)

    def identity(self) -> dict[str, Any]:
        """What makes this run this run: a folder made with another identity is refused."""
        return {
            "edgeredux": __version__,
            "recipe": self.recipe.sha256(),
            "model": self.source.sha256,
            "data": self.feeder.data.sha256,
            "targets": {use.entry: use.target.sha256() for use in self.uses},
        }


def make(
    recipe: Recipe,
    out: Path,
    *,
    only_targets: Sequence[str] | None,
    upto: bundle.Stage,
    log: Path,
    progress: Progress = silent,
    there: uses.There | None = None,
) -> Plan:
    """Check everything and say what will be done. Raises an error of the tree; writes nothing into `out`.

    `there`: the artifacts that exist when no others will be made, by role; then every target is answered, with
    readings or with reasons.
    """
    bundle.check_out(out)
    steps = () if sources.is_graph(recipe.model) else _steps(recipe)  # before a demo model is trained for minutes
    recipe, chosen = uses.choose(
        recipe,
        only_targets,
        steps=steps,
        task=lambda: _task(recipe, progress),
        there=there,
        runs=upto == "profiled",
    )
    source = sources.resolve(recipe.model, progress)
    notes: list[str] = []
    graph = source.kind in ("onnx", "tflite")
    if graph:
        if recipe.reduce:
            names = ", ".join(name for name, _ in recipe.reduce)
            notes.append(f"reduce skipped ({names}): the model is a finished {source.kind} graph, not PyTorch")
        notes.append(f"export skipped: the model is a finished {source.kind} graph")
        fits = tuple(use for use in chosen if use.lenient or use.runtime.format == source.kind)
        for use in chosen:
            if use not in fits:
                reason = (
                    f"{use.entry} skipped: it takes {use.runtime.format}, the model is a finished {source.kind} graph"
                )
                if only_targets is not None and not any(f.target.name == use.target.name for f in fits):
                    raise TargetError(reason + "; give the PyTorch model, or a target that takes this format")
                notes.append(reason)
        chosen = fits
        if not chosen:
            raise TargetError(f"none of the recipe's targets takes {source.kind}; choose one with --target")
    if upto == "profiled":
        chosen = tuple(_checked(use) for use in chosen)
    needed = {name for use in chosen for name in (use.dense, use.reduced)}
    if recipe.primary is not None:
        needed.add(recipe.primary)
    passes = {name: _passes(recipe, name) for name in needed}
    chosen = tuple(_fitting(recipe, use, passes) for use in chosen)
    exporters = {name: _exporter(recipe, name) for name in needed} if not graph else {}
    interface: Interface
    if graph:
        interface = graph_source.interface(source, recipe.max_length, recipe.measure.sequence, log)
    else:
        interface = loading.load(
            source, task=recipe.task, max_length=recipe.max_length, remote_code=recipe.trust_remote_code
        )
        _check_context(recipe, interface)
        for _, _, step in steps:
            step.check(interface)
        for name in sorted(needed):
            _check_cache(recipe, name, interface)
        if upto != "reduced":
            for exporter in exporters.values():
                exporter.check(interface)
    if interface.tokenizer is not None:
        for name in needed:
            length = recipe.artifacts[name].shapes.get("sequence", interface.max_length)
            if length < interface.max_length:
                raise RecipeError(
                    f"recipe {recipe.name}: artifacts.{name}: sequence {length} is shorter than max_length "
                    f"{interface.max_length}: texts would be cut; make max_length at most {length}"
                )
    feeder = make_feeder(interface, recipe.data, recipe.seed)
    feeder.labels()
    if recipe.task == "classification" and recipe.data.label is None and recipe.data.source != "python-docs":
        raise DataError(f"data {recipe.data.source}: no label column was named; add --set data.label=NAME")
    _check_space(out, source, interface, len(steps), 2 * len(needed))
    return Plan(recipe, source, interface, feeder, chosen, steps, exporters, passes, out, tuple(notes))


def _check_cache(recipe: Recipe, name: str, interface: Interface) -> None:
    section = recipe.artifacts[name]
    if not section.cache:
        return
    where = f"recipe {recipe.name}: artifacts.{name}: cache: true"
    if section.format != "onnx" or section.shapes:
        raise RecipeError(f"{where} is for format onnx without fixed shapes")
    if interface.task != "causal-lm" or not getattr(interface, "is_transformers", False):
        raise RecipeError(f"{where} is for causal-lm models of transformers; {interface.name} is {interface.task}")
    assert isinstance(interface, Model)
    with_cache(interface)


def _check_context(recipe: Recipe, interface: Interface) -> None:
    """Refuse texts longer than a decoder's context where the recipe asks for them; encoders cut theirs, as ever."""
    asked = "max_length" in recipe.model_fields_set and recipe.max_length > interface.max_length
    if asked and interface.task == "causal-lm":
        raise RecipeError(
            f"recipe {recipe.name}: max_length {recipe.max_length}: model {interface.name} sees at most "
            f"{interface.max_length} tokens (max_position_embeddings)"
        )


def _checked(use: Use) -> Use:
    """The use, its runner checked; where every target is to be answered, with the reason why it cannot be used."""
    if use.unavailable is not None:
        return use
    try:
        use.runner.check(use.runtime.options)
    except EnvironmentProblem as problem:
        if not use.lenient:
            raise
        return replace(use, unavailable=str(problem))
    return use


def _task(recipe: Recipe, progress: Progress) -> str:
    """The model's task before the model is loaded: the recipe's word, else what its config says."""
    if recipe.task != "auto":
        return recipe.task
    if any(artifact.cache for artifact in recipe.artifacts.values()):
        return "causal-lm"
    source = sources.resolve(recipe.model, progress)
    if source.kind != "huggingface" or source.path is None:
        return "generic"
    return loading.task_of(source.path)


def _steps(recipe: Recipe) -> tuple[tuple[str, dict[str, Any], ReduceStep], ...]:
    made = []
    for index, (name, options) in enumerate(recipe.reduce):
        where = f"recipe {recipe.name}: reduce.{index}"
        made.append((name, options, registry.create("reduce step", name, options, where)))
    return tuple(made)


def _passes(recipe: Recipe, artifact: str) -> tuple[tuple[str, Pass], ...]:
    section = recipe.artifacts[artifact]
    made = []
    for name, options in section.passes:
        where = f"recipe {recipe.name}: artifacts.{artifact}"
        step: Pass = registry.create("pass", name, options, where)
        if step.format != section.format:
            raise RecipeError(f"{where}: pass {name!r} is for {step.format}, the artifact is {section.format}")
        made.append((name, step))
    return tuple(made)


def _fitting(recipe: Recipe, use: Use, passes: Mapping[str, Sequence[tuple[str, Pass]]]) -> Use:
    """The use; RecipeError, or the reason, where a pass makes an artifact for other runners than this one."""
    for side in dict.fromkeys((use.dense, use.reduced)):
        for name, step in passes[side]:
            allowed = getattr(step, "runners", None)
            if allowed is None or use.runtime.runner in allowed or use.unavailable is not None:
                continue
            why = (
                f"recipe {recipe.name}: artifacts.{side}: what pass {name} writes can only be run by "
                f"{', '.join(allowed)}, target {use.entry} has {use.runtime.runner}; give it another artifact"
            )
            if not use.lenient:
                raise RecipeError(why)
            return replace(use, unavailable=why)
    return use


def _exporter(recipe: Recipe, artifact: str) -> Exporter:
    section = recipe.artifacts[artifact]
    where = f"recipe {recipe.name}: artifacts.{artifact}"
    name = section.exporter or recipe.exporters.get(section.format)
    if name is None:
        raise RecipeError(f"{where}: no exporter for {section.format}; name one under exporters:")
    exporter: Exporter = registry.create("exporter", name, section.options, where)
    if exporter.format != section.format:
        raise RecipeError(f"{where}: exporter {name!r} writes {exporter.format}, the artifact is {section.format}")
    return exporter


def _check_space(out: Path, source: Source, interface: Interface, steps: int, artifacts: int) -> None:
    if isinstance(interface, Model):
        size = 4 * interface.parameters()
    else:
        assert source.path is not None
        size = source.path.stat().st_size
    # Per step a model and its checkpoint with two moments; per artifact the export and one intermediate; 32 MB of rest.
    needed = size * (5 * steps + 2 * artifacts) + (32 << 20)
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise StorageError(
            f"{out}: about {needed >> 20} MB are needed there and {free >> 20} MB are free; free some space or choose "
            "another --out"
        )
