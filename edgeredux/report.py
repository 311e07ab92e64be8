"""The report: what was done, what was read, what was asked, and the verdict that follows from them.

`passed` is computed, never stored by hand: every check of every target passes, every target has at least one check,
there is at least one target, and every artifact agrees with what it was made from. A missing reading passes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeredux.artifact import Artifact, change_from_json
from edgeredux.readings import AnyReading, Missing, Reading, from_json

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 1


@dataclass(frozen=True)
class Check:
    """One line of a budget against its reading."""

    name: str
    limit: float
    direction: Literal["at_most", "at_least"]
    reading: AnyReading

    @property
    def passed(self) -> bool:
        """False where the reading is missing."""
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
    """What one reduce step, export or pass changed. None: not taken at this step."""

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
            "seconds": self.seconds,
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> StepLine:
        fields = dict(said)
        for name in ("latency_ms", "quality"):
            fields[name] = None if said[name] is None else from_json(said[name])
        return cls(**fields)


@dataclass(frozen=True)
class TargetReport:
    """Dense beside reduced on one runtime of one target, and the checks. Per-side mappings have dense and reduced."""

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

    @property
    def passed(self) -> bool:
        """False without checks: nothing asked is nothing shown."""
        return bool(self.checks) and all(check.passed for check in self.checks)

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
            "dense": readings(self.dense),
            "reduced": readings(self.reduced),
            "ratios": readings(self.ratios),
            "checks": [check.to_json() for check in self.checks],
            "placement": {side: dict(value) for side, value in self.placement.items()},
            "fallbacks": {side: list(value) for side, value in self.fallbacks.items()},
            "facts": {side: dict(value) for side, value in self.facts.items()},
            "machine": dict(self.machine),
            "layers": {side: [dict(row) for row in rows] for side, rows in self.layers.items()},
            "latency_samples": {side: list(value) for side, value in self.latency_samples.items()},
            "sparsity": [dict(rule) for rule in self.sparsity],
            "sources": [dict(line) for line in self.sources],
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
                found.append(f"{artifact.role}/{artifact.name}: it does not agree with what it was made from")
        for target in self.targets:
            if not target.checks:
                found.append(f"{target.name}: no check was asked for, so nothing was shown")
            for check in target.checks:
                if not check.passed:
                    found.append(f"{target.name}: {describe_check(check)}")
        return found

    def to_json(self) -> dict[str, Any]:
        """The content of report.json."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "failures": self.failures(),
            "stage": self.stage,
            "model": dict(self.model),
            "recipe": dict(self.recipe),
            "artifacts": [
                {
                    "name": item.name,
                    "role": item.role,
                    "format": item.format,
                    "path": item.path.as_posix(),
                    "sha256": item.sha256,
                    "size_bytes": item.size_bytes,
                    "history": [change.to_json() for change in item.history],
                    "parity": dict(item.parity),
                }
                for item in self.artifacts
            ],
            "targets": [target.to_json() for target in self.targets],
            "steps": [line.to_json() for line in self.steps],
            "environment": dict(self.environment),
            "data": dict(self.data),
            "repeatability": {name: value.to_json() for name, value in self.repeatability.items()},
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Report:
        """The report that `to_json` wrote. Raises ValueError, KeyError or TypeError when it is none."""
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
                parity=item["parity"],
            )
            for item in said["artifacts"]
        )
        return cls(
            stage=said["stage"],
            model=said["model"],
            recipe=said["recipe"],
            artifacts=artifacts,
            targets=tuple(TargetReport.from_json(item) for item in said["targets"]),
            steps=tuple(StepLine.from_json(item) for item in said["steps"]),
            environment=said["environment"],
            data=said["data"],
            repeatability={name: from_json(value) for name, value in said["repeatability"].items()},
            warnings=tuple(said["warnings"]),
        )


def describe_check(check: Check) -> str:
    """A check in words: what was asked, what was read."""
    side = "at most" if check.direction == "at_most" else "at least"
    asked = f"{check.name} {side} {check.limit:g}"
    if isinstance(check.reading, Missing):
        return f"{asked} was asked for, and the reading is missing: {check.reading.reason}"
    return f"{asked} was asked for, {show_number(check.reading)} was {check.reading.source}"


def show_number(reading: Reading) -> str:
    """Value and unit at a readable precision."""
    value = reading.value
    if reading.unit in ("x", "accuracy", "share of texts", "share of tokens") or reading.unit.startswith("mean cosine"):
        return f"{value:.3f}" + ("x" if reading.unit == "x" else "")
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f} {reading.unit}".strip()


def summary_table(report: Report) -> RenderableType:
    """The report in a terminal: dense beside reduced per target with the source of each number, then the checks."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    table = Table(title=f"{report.recipe.get('name', '')}: {report.model.get('name', '')}", title_justify="left")
    for name in ("target", "reading", "dense", "reduced", "ratio", "source"):
        table.add_column(name, justify="right" if name in ("dense", "reduced", "ratio") else "left", overflow="fold")
    for target in report.targets:
        first = True
        for metric, reading in target.reduced.items():
            dense = target.dense.get(metric, Missing("not taken"))
            if isinstance(reading, Missing) and isinstance(dense, Missing):
                continue
            share = target.ratios.get(f"{metric.rsplit('_', 1)[0]}_ratio")
            table.add_row(
                Text(target.name if first else ""),
                Text(metric),
                Text(_cell(dense)),
                Text(_cell(reading)),
                Text(_cell(share) if share is not None else ""),
                Text(reading.source if isinstance(reading, Reading) else f"missing: {reading.reason[:60]}"),
            )
            first = False
        absent = [name for name, value in target.reduced.items() if isinstance(value, Missing)]
        if absent:
            table.add_row(Text(target.name if first else ""), Text("missing"), "", "", "", Text(", ".join(absent)))
        table.add_section()
    parts.append(table)
    checks = Table(box=None, pad_edge=False, show_header=False)
    for target in report.targets:
        for check in target.checks:
            mark = Text("✓", style="green") if check.passed else Text("✗", style="red")
            checks.add_row(mark, Text(target.name), Text(describe_check(check)))
    parts.append(checks)
    for warning in report.warnings:
        parts.append(Text(f"note: {warning}", style="yellow"))
    return Group(*parts)


def _cell(reading: AnyReading) -> str:
    return "missing" if isinstance(reading, Missing) else show_number(reading)
