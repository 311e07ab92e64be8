"""Targets: a device with its runtimes, which sparsity pays there, its energy model and its default budget. Data only.

One file is one target. A figure is {value, unit, source}; `source` names a line under `sources`, which has the URL and
the date. What makes a file complete as well as well-formed: target_check.py.
The first runtime is the primary one: the report calls it by the target's name, the others `target:runner`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edgeredux import registry
from edgeredux.errors import TargetError, one_line, unknown
from edgeredux.hardware import Dtype, Hardware
from edgeredux.recipe import Budget, check_budget, explain

Pattern: TypeAlias = Literal["structured", "unstructured", "2:4", "block", "tile"]
Task: TypeAlias = Literal["embedding", "classification", "causal-lm", "generic"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RuntimeSection(_Section):
    """One way to run a model on the target."""

    runner: str
    format: Literal["onnx", "tflite"]
    options: dict[str, Any] = {}


class SparsityRule(_Section):
    """Whether zeros of a pattern pay here, from which share of zeros on, and how that is known.

    `pattern`: structured (shapes shrink), unstructured, 2:4, block or tile. `source` is a measurement or a statement,
    in words that say where it can be read. `runtimes`: the runners that the rule is true of; none named means all.
    `needs`: passes without which the zeros do not pay.
    """

    pattern: Pattern
    pays: bool
    from_zeros: Annotated[float, Field(ge=0, lt=1)] | None = None
    source: Annotated[str, Field(min_length=1)]
    runtimes: list[str] = []
    needs: list[str] = []


class PickSection(_Section):
    """What pays here for models of these tasks: the artifacts that are made where a recipe names none for this target,
    the pattern of zeros that is offered, and why. A fixed `sequence` becomes the recipe's max_length.
    """

    tasks: Annotated[list[Task], Field(min_length=1)]
    format: Literal["onnx", "tflite"]
    cache: bool = False
    shapes: dict[str, Annotated[int, Field(ge=1)]] = {}
    dense: list[Any]  # passes, as in a recipe
    reduced: list[Any]
    pattern: Pattern
    why: Annotated[str, Field(min_length=1)]


class SupportSection(_Section):
    """What the device's arithmetic takes. `operators`: their names in the runtime's format, or "runtime": all that
    the runtimes take. `source` names a line under `sources`.
    """

    dtypes: Annotated[list[Dtype], Field(min_length=1)]
    operators: Literal["runtime"] | list[str] = "runtime"
    source: str


class EnergySection(_Section):
    """Meters to try in order, and the model to fall back on (always marked estimated). `unknown`: why there is none."""

    meter: list[str] = []
    model: dict[str, Any] | None = None
    unknown: str | None = None


class FitSection(_Section):
    """What one quantity's estimate is made of on this device for one numeric format under one runtime.

    `coefficients` are milliseconds (millijoules) by the terms of `style`, see edgeredux/prediction/features.py.
    `errors` are those of models left out of the fit, estimate/measured - 1, at the quantiles 5, 10, 25, 50, 75, 90
    and 95 %; `macs` the multiply-accumulates of the smallest and the largest model.
    """

    quantity: Literal["latency", "energy"] = "latency"
    style: Literal["npu", "cpu", "mcu", "host"]
    dtype: Literal["float", "w8a8", "w8a16", "int8"]
    runtime: str = "any"  # qnn_dlc, onnx, tflite, ncnn
    threads: Annotated[int, Field(ge=1)] = 1
    models: Annotated[int, Field(ge=1)]
    median_error: Annotated[float, Field(ge=0)]
    p90_error: Annotated[float, Field(ge=0)]
    rank_correlation: Annotated[float, Field(ge=-1, le=1)] | None = None
    errors: Annotated[list[float], Field(min_length=7, max_length=7)]
    macs: tuple[float, float]
    coefficients: dict[str, Annotated[float, Field(ge=0)]]


class LatencyModelSection(_Section):
    """The per-operator roofline of a device, written by tools/calibrate; its formula: edgeredux/prediction."""

    device: str  # by the name the measurements have
    source: str
    url: str
    date: str
    fits: Annotated[list[FitSection], Field(min_length=1)]


class SourceLine(_Section):
    """Where figures come from. `name` is what they call it; `date` is the document's, or the day it was read."""

    figure: str
    url: str
    date: str
    name: str = ""


class Target(_Section):
    """A device and how to judge a model on it."""

    name: str
    description: str
    hardware: Hardware = Hardware()
    supports: SupportSection | None = None
    runtimes: Annotated[list[RuntimeSection], Field(min_length=1)]
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None  # None: the recipe's
    picks: list[PickSection] = []
    sparsity: list[SparsityRule] = []
    energy: EnergySection = EnergySection()
    budget: Budget = {}
    sources: list[SourceLine] = []
    latency_model: LatencyModelSection | None = None  # the file's last key: tools/calibrate writes from it to the end
    _budget = field_validator("budget")(check_budget)

    def runtime(self, runner: str, where: str) -> RuntimeSection:
        """The runtime with this runner. Raises TargetError naming those there are."""
        for section in self.runtimes:
            if section.runner == runner:
                return section
        raise TargetError(unknown("runtime", runner, [r.runner for r in self.runtimes], where))

    def entry(self, runner: str) -> str:
        """What the report calls the target under this runner."""
        return self.name if self.runtimes[0].runner == runner else f"{self.name}:{runner}"

    def sha256(self) -> str:
        """Hash of everything the target says."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def shipped() -> dict[str, Path]:
    """The targets that come with the package, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "targets").glob("*.yaml"))}


def own() -> Path:
    """The folder of the user's own targets, in the configuration folder (XDG): found by name after the shipped ones."""
    said = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (said if said.is_absolute() else Path.home() / ".config") / "edgeredux" / "targets"


def load(target: str) -> Target:
    """The target by shipped name, by name among the user's own, or by file. Raises TargetError, one line."""
    path = Path(target).expanduser()
    if target in shipped():
        path = shipped()[target]
    elif re.fullmatch(r"[A-Za-z0-9._-]+", target) and (own() / f"{target}.yaml").is_file():
        path = own() / f"{target}.yaml"
    elif not path.is_file():
        if path.suffix in (".yaml", ".yml") or "/" in target:
            raise TargetError(f"target {target}: no such file")
        raise TargetError(unknown("target", target, shipped(), "target") + ", or a .yaml file")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise TargetError(one_line(f"target {target}: cannot be read: {problem}")) from problem
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        raise TargetError(one_line(f"target {target}: no YAML: {problem}", 300)) from problem
    if not isinstance(data, Mapping):
        raise TargetError(f"target {target}: it must hold a mapping of keys, not {type(data).__name__}")
    where = f"target {path.stem if target in shipped() else target}"
    try:
        parsed = Target.model_validate(data)
    except ValidationError as problem:
        raise TargetError(explain(problem, where, Target)) from problem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", parsed.name):
        raise TargetError(f"{where}: name {parsed.name!r}: letters, digits, '.', '_', '-' only, at most 64")
    for section in parsed.runtimes:
        registry.check_name("runner", section.runner, where, TargetError)
    for name in parsed.energy.meter:
        registry.check_name("meter", name, where, TargetError)
    names = [section.runner for section in parsed.runtimes]
    if len(set(names)) != len(names):
        raise TargetError(f"{where}: a runner is listed twice: {', '.join(names)}")
    return parsed
