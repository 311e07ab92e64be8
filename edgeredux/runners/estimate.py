"""Latency and energy of a device that is not here, from the model that tools/calibrate fitted to its measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux import measure
from edgeredux.artifact import Format
from edgeredux.errors import ArtifactError
from edgeredux.prediction import estimating
from edgeredux.readings import Missing
from edgeredux.runners import options
from edgeredux.seams import DeviceProfile, ProfileJob

WHERE = "runner estimate"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Options:
    """Which fit is meant where the target has several for a numeric format: its runtime's name there."""

    runtime: Literal["any", "qnn_dlc", "onnx", "tflite", "ncnn"] | None = None


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Estimate:
    """latency_ms and energy_mj `estimated`, each with the error of models left out of the fit; nothing is executed."""

    formats: ClassVar[tuple[Format, ...]] = ("onnx", "tflite")

    def check(self, options_: Mapping[str, Any]) -> None:
        """Raise TargetError on an unknown option."""
        options.read(Options, options_, WHERE)

    def profile(self, job: ProfileJob) -> dict[str, DeviceProfile]:
        """Readings `estimated`, or Missing with the reason; memory and outputs are Missing, which says why."""
        chosen = options.read(Options, job.options, WHERE)
        return {label: self._one(job, label, chosen) for label in job.artifacts}

    def _one(self, job: ProfileJob, label: str, chosen: Options) -> DeviceProfile:
        path = job.artifacts[label]
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file")
        shapes = {name: value.shape for name, value in job.first_feed(label).items()}
        found = estimating.estimate(path, shapes, job.latency_model, threads=job.threads, runtime=chosen.runtime)
        return DeviceProfile(
            readings={
                "latency_ms": found.latency,
                "throughput_per_s": measure.throughput(found.latency, job.samples_per_run),
                "energy_mj": found.energy,
                "memory_mb": Missing("the model estimates time and energy, not memory"),
            },
            outputs_how="an estimate executes nothing: quality is taken where the file runs",
            facts=found.facts,
            layers=found.layers,
        )
