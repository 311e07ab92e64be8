"""Readings that were measured elsewhere, for exactly this file on this target under these conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux import records
from edgeredux.artifact import Format, sha256_file
from edgeredux.errors import EnvironmentProblem
from edgeredux.readings import AnyReading, Missing, Reading
from edgeredux.records import Record
from edgeredux.runners import options
from edgeredux.seams import DeviceProfile, ProfileJob

WHERE = "runner replay"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Options:
    """`records`: files that `edgeredux profile --record` wrote; none: those that EDGEREDUX_RECORDS names."""

    records: tuple[str, ...] = ()


def _files(given: Options) -> tuple[Path, ...]:
    return tuple(Path(name).expanduser() for name in given.records) or records.named()


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Replay:
    """Source `replayed`. A file with another hash, another target or other conditions is Missing, never the nearest."""

    formats: ClassVar[tuple[Format, ...]] = ("onnx", "tflite")

    def check(self, options_: Mapping[str, Any]) -> None:
        """Raise EnvironmentProblem when no records are named, DataError when a file is none."""
        files = _files(options.read(Options, options_, WHERE))
        if not files:
            raise EnvironmentProblem(
                f"{WHERE}: no readings recorded elsewhere are at hand; name files of them with --records FILE or "
                f"{records.VARIABLE}"
            )
        for path in files:
            records.read(path)

    def device(self, options_: Mapping[str, Any]) -> str:
        """The hashes of the record files: other records are another device."""
        return ", ".join(sha256_file(path) for path in _files(options.read(Options, options_, WHERE)))

    def profile(self, job: ProfileJob) -> dict[str, DeviceProfile]:
        """What was recorded of each file; its pairing is kept when all of them ran in one run."""
        self.check(job.options)
        files = _files(options.read(Options, job.options, WHERE))
        known = [record for path in files for record in records.read(path)]
        found = {label: find(known, sha256_file(path), job) for label, path in job.artifacts.items()}
        runs = {record.run for record in found.values() if isinstance(record, Record)}
        together = len(runs) == 1 and not any(isinstance(record, Missing) for record in found.values())
        return {label: _profile(record, together) for label, record in found.items()}


def find(known: Sequence[Record], sha256: str, job: ProfileJob) -> Record | Missing:
    """The newest record of this file on the job's target, taken under its conditions; else why there is none."""
    here = [record for record in known if record.target == job.target]
    if not here:
        return Missing(f"replay: none of {len(known)} records is of target {job.target}")
    same = [record for record in here if record.artifact_sha256 == sha256]
    if not same:
        return Missing(f"replay: none of {len(here)} records of target {job.target} is of this file ({sha256[:12]}…)")
    alike = [record for record in same if dict(record.conditions) == dict(job.conditions)]
    if not alike:
        taken = "; ".join(sorted({_said(record.conditions) for record in same}))
        return Missing(f"replay: recorded with {taken}, asked for with {_said(job.conditions)}")
    return max(alike, key=lambda record: record.date)


def _said(conditions: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(conditions.items())) or "nothing said"


def _profile(record: Record | Missing, together: bool) -> DeviceProfile:
    if isinstance(record, Missing):
        names = ("latency_ms", "throughput_per_s", "energy_mj", "memory_mb")
        return DeviceProfile(readings=dict.fromkeys(names, record), outputs_how=record.reason)
    origin = f"recorded {record.date} on {record.host}, {record.driver}"
    readings: dict[str, AnyReading] = {
        name: replace(reading, source="replayed", how=f"{origin}: {reading.how}")
        for name, reading in record.readings.items()
        if isinstance(reading, Reading)
    }
    for name in ("latency_ms", "throughput_per_s", "energy_mj", "memory_mb"):
        readings.setdefault(name, Missing(f"{origin}: it was not measured there"))
    return DeviceProfile(
        readings=readings,
        latency_samples=record.latency_samples if together else (),
        outputs_how="recorded readings hold no outputs",
        facts={"recorded": record.date, "host": record.host, "driver": record.driver, "runner": record.runtime},
    )
