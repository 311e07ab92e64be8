"""The report: what was done, what was read, what was asked, and the verdict that follows from them.

`passed` is computed, never stored by hand: there is at least one target, every target has at least one check, every
check passes, every artifact agrees with what it was made from, and every number quotes the hash of an artifact that
is here. A missing reading passes nothing. A pass that was rolled back is recorded and fails nothing: its file is gone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgeredux.artifact import Artifact, change_from_json
from edgeredux.errors import EnvironmentProblem, one_line
from edgeredux.readings import AnyReading, Missing, Reading, from_json

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

SCHEMA = 1
SCHEMA_FILE = Path(__file__).parent / "schemas" / "report.schema.json"
Direction = Literal["at_most", "at_least"]
# The six that every profile has, known or not, in the order in which they are shown.
METRICS = ("latency_ms", "throughput_per_s", "energy_mj", "memory_mb", "size_mb", "quality")
# The ratio reduced / dense that goes with a metric.
RATIO_OF: Mapping[str, str] = {
    "latency_ms": "latency_ratio",
    "throughput_per_s": "throughput_ratio",
    "energy_mj": "energy_ratio",
    "memory_mb": "memory_ratio",
    "size_mb": "size_ratio",
    "quality": "quality_ratio",
}
_TERMINAL = ("latency_ms", "size_mb", "memory_mb", "energy_mj", "quality")
# Units of which 0..1 is the whole range, so that the third decimal counts.
SHARES = ("accuracy", "agreement with dense", "share of texts", "share of tokens", "mean cosine to dense")


@dataclass(frozen=True)
class Check:
    """One line of a budget against its reading. Raises ValueError on a limit that is no finite number."""

    name: str
    limit: float
    direction: Direction
    reading: AnyReading

    def __post_init__(self) -> None:
        if isinstance(self.limit, bool) or not isinstance(self.limit, (int, float)) or not math.isfinite(self.limit):
            raise ValueError(f"check {self.name!r}: limit {self.limit!r} is no finite number")
        if self.direction not in get_args(Direction):
            raise ValueError(f"check {self.name!r}: direction {self.direction!r}: allowed are at_most, at_least")

    @property
    def passed(self) -> bool:
        """False where the reading is missing. A noisy reading is judged like any other; the words say that it is."""
        if isinstance(self.reading, Missing):
            return False
        return self.reading.value <= self.limit if self.direction == "at_most" else self.reading.value >= self.limit

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "limit": self.limit,
            "direction": self.direction,
            "reading": self.reading.to_json(),
            "passed": self.passed,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Check:
        return cls(said["name"], said["limit"], said["direction"], from_json(said["reading"]))


@dataclass(frozen=True)
class StepLine:
    """What one reduce step, export or pass changed. None: not taken at this step.

    `name` of an export or a pass is "<artifact>: <step>". details["rolled_back"] is true where a pass's file was
    thrown away because it did not agree.
    """

    stage: Literal["reduce", "export", "pass"]
    name: str
    changed: bool
    why: str
    bytes_before: int | None = None
    bytes_after: int | None = None
    latency_ms: AnyReading | None = None
    quality: AnyReading | None = None
    parameters: int | None = None
    seconds: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rolled_back(self) -> bool:
        """True where the pass made a file that did not agree, so that the file before it stayed."""
        return self.details.get("rolled_back") is True

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "name": self.name,
            "changed": self.changed,
            "why": self.why,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "latency_ms": None if self.latency_ms is None else self.latency_ms.to_json(),
            "quality": None if self.quality is None else self.quality.to_json(),
            "parameters": self.parameters,
            "seconds": _plain(self.seconds),
            "details": _plain(self.details),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> StepLine:
        fields = dict(said)
        for name in ("latency_ms", "quality"):
            fields[name] = None if said[name] is None else from_json(said[name])
        return cls(**fields)


@dataclass(frozen=True)
class TargetReport:
    """Dense beside reduced on one runtime of one target, and the checks.

    `dense`, `reduced` and `ratios` are readings by metric. The other mappings have the sides "dense" and "reduced":
    `placement` (operators by device or provider), `fallbacks` (operators not on the target's device, "KIND name"),
    `facts` (anything worth showing; a mapping of numbers whose key ends in `_bytes` is drawn), `layers` (rows of one
    table), `latency_samples` (ms, paired by index). `sparsity` and `sources` are the target's own rules and figures.
    `error`: why this target could not be judged, although others were.
    """

    name: str
    target: str
    runtime: str
    artifact: str
    dense_artifact: str
    artifact_sha256: str
    dense_sha256: str
    dense: Mapping[str, AnyReading]
    reduced: Mapping[str, AnyReading]
    ratios: Mapping[str, AnyReading]
    checks: Sequence[Check]
    placement: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    fallbacks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    latency_samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sparsity: Sequence[Mapping[str, Any]] = ()
    description: str = ""
    sources: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    error: str | None = None

    @property
    def passed(self) -> bool:
        """False without checks: nothing asked is nothing shown."""
        return self.error is None and bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        def readings(values: Mapping[str, AnyReading]) -> dict[str, Any]:
            return {name: value.to_json() for name, value in values.items()}

        return {
            "name": self.name,
            "target": self.target,
            "runtime": self.runtime,
            "description": self.description,
            "artifact": self.artifact,
            "dense_artifact": self.dense_artifact,
            "artifact_sha256": self.artifact_sha256,
            "dense_sha256": self.dense_sha256,
            "passed": self.passed,
            "error": self.error,
            "dense": readings(_six(self.dense)),
            "reduced": readings(_six(self.reduced)),
            "ratios": readings(self.ratios),
            "checks": [check.to_json() for check in self.checks],
            "placement": _plain(self.placement),
            "fallbacks": _plain(self.fallbacks),
            "facts": _plain(self.facts),
            "machine": _plain(self.machine),
            "layers": _plain(self.layers),
            "latency_samples": _plain(self.latency_samples),
            "sparsity": _plain(self.sparsity),
            "sources": _plain(self.sources),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> TargetReport:
        fields = {name: value for name, value in said.items() if name != "passed"}
        for name in ("dense", "reduced", "ratios"):
            fields[name] = {metric: from_json(value) for metric, value in said[name].items()}
        fields["checks"] = tuple(Check.from_json(check) for check in said["checks"])
        return cls(**fields)


@dataclass(frozen=True)
class Report:
    """Everything about one bundle. `artifacts` have their paths inside the bundle."""

    stage: Literal["reduced", "exported", "profiled"]
    model: Mapping[str, Any]
    recipe: Mapping[str, Any]
    artifacts: Sequence[Artifact]
    targets: Sequence[TargetReport]
    steps: Sequence[StepLine]
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    repeatability: Mapping[str, AnyReading]
    warnings: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        """The verdict."""
        return bool(self.targets) and not self.failures()

    def failures(self) -> list[str]:
        """One line for each thing that was missed."""
        found = []
        if not self.targets:
            found.append("no target was profiled")
        for artifact in self.artifacts:
            if artifact.parity.get("passed") is not True:
                reason = artifact.parity.get("reason")
                said = f": {one_line(reason, 200)}" if isinstance(reason, str) and reason else ""
                found.append(f"{artifact.role}/{artifact.name}: it does not agree with what it was made from{said}")
        known = {artifact.sha256 for artifact in self.artifacts}
        for target in self.targets:
            if target.error is not None:
                found.append(f"{target.name}: could not be judged: {one_line(target.error)}")
            for side, sha256 in (("reduced", target.artifact_sha256), ("dense", target.dense_sha256)):
                if sha256 not in known:
                    found.append(f"{target.name}: its {side} numbers quote {sha256[:12]}…, no artifact of this report")
            if not target.checks:
                found.append(f"{target.name}: no check was asked for, so nothing was shown")
            for check in target.checks:
                if not check.passed:
                    found.append(f"{target.name}: {describe_check(check)}")
        return found

    def remarks(self) -> list[str]:
        """What a reader must know to weigh the verdict: readings not measured, noisy runs, passes rolled back."""
        checks = [(target.name, check) for target in self.targets for check in target.checks]
        found = []
        for source in ("simulated", "estimated", "replayed"):
            places = [n for n, c in checks if isinstance(c.reading, Reading) and c.reading.source == source]
            if places:
                count = f"{len(places)} of {len(checks)} checks"
                found.append(f"{source}, not measured: the numbers behind {count}, on {_names(places)}")
        noisy = [n for n, c in checks if isinstance(c.reading, Reading) and c.reading.noisy]
        if noisy:
            taken = f"{len(noisy)} checked reading{'s were' if len(noisy) > 1 else ' was'} taken"
            found.append(f"the machine was noisy while {taken}: {_names(noisy)}")
        undone = [line.name for line in self.steps if line.rolled_back]
        if undone:
            found.append(f"rolled back, because the outputs no longer agreed: {_names(undone)}")
        return found

    def to_json(self) -> dict[str, Any]:
        """The content of report.json: plain JSON values, no NaN."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "failures": self.failures(),
            "stage": self.stage,
            "model": _plain(self.model),
            "recipe": _plain(self.recipe),
            "artifacts": [
                {
                    "name": item.name,
                    "role": item.role,
                    "format": item.format,
                    "path": item.path.as_posix(),
                    "sha256": item.sha256,
                    "size_bytes": item.size_bytes,
                    "history": [_plain(change.to_json()) for change in item.history],
                    "parity": {"passed": False, **_plain(item.parity)},
                }
                for item in self.artifacts
            ],
            "targets": [target.to_json() for target in self.targets],
            "steps": [line.to_json() for line in self.steps],
            "environment": _plain(self.environment),
            "data": _plain(self.data),
            "repeatability": {name: value.to_json() for name, value in self.repeatability.items()},
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, said: Any) -> Report:
        """The report that `to_json` wrote; the verdict is taken anew. Raises ValueError when it is none."""
        try:
            return cls._read(said)
        except (KeyError, TypeError, AttributeError, ValueError) as problem:
            raise ValueError(one_line(f"no report of edgeredux: {type(problem).__name__}: {problem}")) from problem

    @classmethod
    def _read(cls, said: Mapping[str, Any]) -> Report:
        if said["schema"] != SCHEMA:
            raise ValueError(f"report schema {said['schema']!r}; this version reads {SCHEMA}")
        artifacts = tuple(
            Artifact(
                name=item["name"],
                role=item["role"],
                format=item["format"],
                path=Path(item["path"]),
                sha256=item["sha256"],
                size_bytes=item["size_bytes"],
                history=tuple(change_from_json(line) for line in item["history"]),
                parity=dict(item["parity"]),
            )
            for item in said["artifacts"]
        )
        return cls(
            stage=said["stage"],
            model=dict(said["model"]),
            recipe=dict(said["recipe"]),
            artifacts=artifacts,
            targets=tuple(TargetReport.from_json(item) for item in said["targets"]),
            steps=tuple(StepLine.from_json(item) for item in said["steps"]),
            environment=dict(said["environment"]),
            data=dict(said["data"]),
            repeatability={name: from_json(value) for name, value in said["repeatability"].items()},
            warnings=tuple(said["warnings"]),
        )


def _six(profile: Mapping[str, AnyReading]) -> dict[str, AnyReading]:
    """The profile with all six metrics, in order, then the others."""
    six = {name: profile.get(name, Missing("nobody took it")) for name in METRICS}
    return {**six, **{name: value for name, value in profile.items() if name not in six}}


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: names are text, what is no finite number is null, other objects are their text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays, without importing it
        return _plain(value.tolist())
    return str(value)


def schema() -> dict[str, Any]:
    """The JSON Schema of report.json, as shipped."""
    loaded: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return loaded


def validate(data: Any) -> None:
    """Raise ValueError, naming the place, when `data` breaks the schema; EnvironmentProblem without jsonschema."""
    try:
        import jsonschema
    except ImportError as problem:
        raise EnvironmentProblem("checking a report needs jsonschema; install it: pip install jsonschema") from problem
    found = jsonschema.Draft202012Validator(schema()).iter_errors(data)
    first = min(found, key=lambda error: (error.json_path, error.message), default=None)
    if first is not None:
        raise ValueError(one_line(f"{first.json_path}: {first.message}"))


def describe_check(check: Check) -> str:
    """A check in words: what was asked, what was read, and whether the run was noisy."""
    asked = f"{check.name} {check.direction.replace('_', ' ')} {check.limit:g}"
    if isinstance(check.reading, Missing):
        return f"{asked} was asked for, and the reading is missing: {one_line(check.reading.reason)}"
    noisy = ", in a noisy run" if check.reading.noisy else ""
    return f"{asked} was asked for, {show_beside(check.reading, check.limit)} was {check.reading.source}{noisy}"


def show_number(reading: Reading) -> str:
    """Value and unit at a readable precision: "4.21 ms", "0.231x", "0.957"; shares and ratios without their unit."""
    if reading.unit == "x":
        return f"{show_value(reading.value)}x"
    if reading.unit in SHARES:
        return show_share(reading.value)
    return f"{show_value(reading.value)} {reading.unit}".strip()


def show_value(value: float) -> str:
    """A number at three digits or more: 12,345, 123.4, 4.21, 0.231, 0.00042."""
    size = abs(value)
    if value == 0 or size >= 0.0095:
        digits = 0 if size >= 1000 or value == 0 else 1 if size >= 100 else 2 if size >= 1 else 3
        return f"{value:,.{digits}f}"
    return f"{value:.2g}"


def show_share(value: float) -> str:
    """A value of 0..1 at three decimals; what is not quite 1 never looks like 1."""
    if not 0.9995 <= value < 1:
        return f"{value:.3f}"
    return f"{value:.4f}" if value < 0.99995 else ">0.9999"


def show_beside(reading: Reading, limit: float) -> str:
    """`show_number`, with more digits where the value and the limit would look the same without being it."""
    shown = show_number(reading)
    number = shown.removesuffix(reading.unit).strip(" >").replace(",", "")
    if reading.value == limit or float(number) != limit:
        return shown
    unit = "x" if reading.unit == "x" else "" if reading.unit in SHARES else f" {reading.unit}"
    exact = (f"{reading.value:.{digits}g}" for digits in range(4, 18))
    return next(text for text in exact if float(text) != limit) + unit


def _names(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def summary_table(report: Report) -> RenderableType:
    """The report in a terminal: dense beside reduced per target with the source of each number, then the checks.

    Throughput is left out (it is latency once more). What is missing is named below the checks with the reason.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table

    title = plain_text(f"{report.recipe.get('name', '')}: {report.model.get('name', '')}", "bold")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("target", "reading", "dense", "reduced", "ratio", "source"):
        right, fixed = name in ("dense", "reduced", "ratio"), name in ("reading", "source", "ratio")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=fixed)
    absent: dict[str, dict[str, list[str]]] = {}  # reason -> target -> metrics
    for target in report.targets:
        first = target.name
        profile = _six(target.reduced)
        for metric in (*_TERMINAL, *(name for name in profile if name not in METRICS)):
            reading, dense = profile[metric], target.dense.get(metric, Missing("nobody took it"))
            if isinstance(reading, Missing):
                absent.setdefault(one_line(reading.reason), {}).setdefault(target.name, []).append(metric)
            share = target.ratios.get(RATIO_OF.get(metric, ""), Missing("not formed"))
            table.add_row(
                plain_text(first), plain_text(metric), _cell(dense), _cell(reading), _cell(share, ""), _source(reading)
            )
            first = ""
        table.add_section()
    checks = Table(box=None, pad_edge=False, show_header=False)
    for target in report.targets:
        for check in target.checks:
            mark = plain_text("✓", "green") if check.passed else plain_text("✗", "red")
            checks.add_row(mark, plain_text(target.name), plain_text(describe_check(check)))
    said = {f"{target.name}: {describe_check(check)}" for target in report.targets for check in target.checks}
    notes = [plain_text(f"✗ {line}", "red") for line in report.failures() if line not in said]
    for reason, places in absent.items():
        where = "; ".join(f"{', '.join(metrics)} on {name}" for name, metrics in places.items())
        notes.append(plain_text(f"missing: {where}: {reason}", "dim"))
    said_there = [f"{target.name}: {line}" for target in report.targets for line in target.notes]
    notes += [plain_text(f"note: {line}", "yellow") for line in (*report.remarks(), *report.warnings, *said_there)]
    return Group(table, checks, *notes)


def plain_text(said: str, style: str = "") -> Text:
    """Text for a terminal: names come from files of strangers, so nothing in them moves the cursor or is markup."""
    from rich.text import Text

    return Text("".join(char if char.isprintable() else "�" for char in said), style=style)


def _cell(reading: AnyReading, missing: str = "missing") -> Text:
    if isinstance(reading, Missing):
        return plain_text(missing, "dim")
    return plain_text(show_number(reading).removesuffix(" perplexity"))


def _source(reading: AnyReading) -> Text:
    if isinstance(reading, Missing):
        return plain_text("missing", "dim")
    return plain_text(reading.source + (", noisy" if reading.noisy else ""), "yellow" if reading.noisy else "")
