"""Readings taken somewhere else, kept in a file, found again by the model's hash, the target's name and the conditions.

Only what was measured is recorded: a simulated or estimated number would look stronger for having been replayed.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeredux.errors import DataError, one_line
from edgeredux.readings import AnyReading, Reading, from_json
from edgeredux.report import Report, TargetReport

VARIABLE = "EDGEREDUX_RECORDS"  # files, separated as in PATH
SCHEMA = 1
# What a device gives. Size and quality are taken anew from the files at hand.
METRICS = (
    "latency_ms",
    "throughput_per_s",
    "energy_mj",
    "memory_mb",
    "time_to_first_token_ms",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
)


@dataclass(frozen=True)
class Record:
    """What one artifact did on one target. `run` is the same for artifacts that ran interleaved in one run."""

    artifact_sha256: str
    target: str
    runtime: str
    date: str  # YYYY-MM-DD, of the recording
    host: str  # the machine that took the readings
    driver: str  # the runtime that executed, with its version
    run: str
    conditions: Mapping[str, int]  # threads, batch, sequence
    readings: Mapping[str, AnyReading]
    latency_samples: Sequence[float] = ()


def of_report(report: Report, date: str | None = None) -> list[Record]:
    """The measured readings of every target of a report, dense and reduced. Raises DataError when there are none."""
    day = date or datetime.datetime.now(datetime.UTC).date().isoformat()
    host = f"{report.environment.get('cpu', 'unknown CPU')}, {report.environment.get('system', 'unknown system')}"
    found: list[Record] = []
    for target in report.targets:
        found += _of_target(target, day, str(target.machine.get("host", host)))
    if not found:
        raise DataError("nothing to record: the report has no measured latency, memory or energy")
    return found


def _of_target(target: TargetReport, day: str, host: str) -> list[Record]:
    found = []
    sides = (
        ("dense", target.dense_sha256, target.dense),
        ("reduced", target.artifact_sha256, target.reduced),
    )
    for side, sha256, readings in sides:
        measured: dict[str, AnyReading] = {
            name: reading
            for name in METRICS
            if isinstance(reading := readings.get(name), Reading) and reading.source == "measured"
        }
        if not measured:
            continue
        facts = target.facts.get(side, {})
        found.append(
            Record(
                artifact_sha256=sha256,
                target=target.target,
                runtime=target.runtime,
                date=day,
                host=host,
                driver=str(facts.get("driver") or facts.get("runtime") or target.runtime),
                run=f"{target.dense_sha256[:16]}-{target.artifact_sha256[:16]}",
                conditions={str(k): int(v) for k, v in dict(target.machine.get("conditions", {})).items()},
                readings=measured,
                latency_samples=tuple(target.latency_samples.get(side, ())) if "latency_ms" in measured else (),
            )
        )
    return found


def text(records: Iterable[Record]) -> str:
    """The records as a file holds them."""
    rows = []
    for record in records:
        row = asdict(record)
        row["readings"] = {name: reading.to_json() for name, reading in record.readings.items()}
        row["latency_samples"] = list(record.latency_samples)
        rows.append(row)
    return json.dumps({"schema": SCHEMA, "records": rows}, indent=1) + "\n"


def named(environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """The files that EDGEREDUX_RECORDS names."""
    return tuple(Path(name).expanduser() for name in environment.get(VARIABLE, "").split(os.pathsep) if name)


def read(path: Path) -> list[Record]:
    """The records of a file. Raises DataError, one line, when it is none."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["schema"] != SCHEMA:
            raise ValueError(f"schema {said['schema']!r}; this version reads {SCHEMA}")
        return [_record(row) for row in said["records"]]
    except OSError as problem:
        raise DataError(f"records {path}: cannot be read: {problem.strerror}") from problem
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise DataError(one_line(f"records {path}: no records: {type(problem).__name__}: {problem}")) from problem


def _record(row: Mapping[str, Any]) -> Record:
    fields = dict(row)
    datetime.date.fromisoformat(fields["date"])
    fields["readings"] = {name: from_json(value) for name, value in row["readings"].items()}
    fields["latency_samples"] = tuple(float(value) for value in row["latency_samples"])
    for name, reading in fields["readings"].items():
        if not isinstance(reading, Reading) or reading.source != "measured":
            raise ValueError(f"{name} of {fields['target']} is no measured reading")
    return Record(**fields)
