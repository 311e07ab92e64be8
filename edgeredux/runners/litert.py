"""LiteRT (TensorFlow Lite) on this machine's CPU: everything measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux import isolated
from edgeredux.artifact import Format
from edgeredux.errors import ArtifactError
from edgeredux.runners import options, together
from edgeredux.seams import DeviceProfile, ProfileJob

WHERE = "runner litert"
INSTALL = "pip install 'edgeredux[tflite]'"
Resolver = Literal["xnnpack", "builtin_without_default_delegates", "reference"]
# What the kernels outside of a delegate are called in the placement.
_KERNELS = {"xnnpack": "built-in", "builtin_without_default_delegates": "built-in", "reference": "reference"}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Options:
    """What a target may set. `resolver` says whose kernels run.

    xnnpack (what LiteRT does by default): the XNNPACK delegate takes what it can, built-in kernels the rest.
    builtin_without_default_delegates: optimised built-in kernels alone. reference: the portable reference kernels.
    """

    resolver: Resolver = "xnnpack"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Litert:
    """Latency interleaved in one child process; memory and placement of each file in a process of its own.

    Latency is one call from NumPy arrays to NumPy arrays; quantised inputs and outputs are converted with their
    scale and zero point within it. It is an error when XNNPACK is asked for and takes no operator, when a delegate
    appears that was not asked for, and when XNNPACK took an operator whose sparse weights it would read as dense ones
    (it takes the packed bytes for a matrix and returns garbage).
    """

    formats: ClassVar[tuple[Format, ...]] = ("tflite",)

    def check(self, options_: Mapping[str, Any]) -> None:
        """Raise TargetError on unknown options, EnvironmentProblem without LiteRT."""
        options.read(Options, options_, WHERE)
        options.version("ai-edge-litert", "LiteRT", INSTALL)

    def profile(self, job: ProfileJob) -> dict[str, DeviceProfile]:
        """latency_ms, throughput_per_s and memory_mb measured; energy_mj by the target's meters or Missing.

        Raises ArtifactError, one line, on a file that cannot be loaded, run, or run where it should.
        """
        self.check(job.options)
        resolver = options.read(Options, job.options, WHERE).resolver
        runtime = f"LiteRT {options.version('ai-edge-litert', 'LiteRT', INSTALL)}, {_words(resolver)}"
        alone = {
            label: isolated.call(
                f"{__name__}:examine", {"job": job, "label": label}, log=job.log, what=f"LiteRT on {path.name}"
            )
            for label, path in job.artifacts.items()
        }
        names = ", ".join(path.name for path in job.artifacts.values())
        found = isolated.call(f"{__name__}:run_all", {"job": job}, log=job.log, what=f"LiteRT on {names}")
        return {
            label: together.device_profile(
                job,
                label,
                found,
                alone[label]["memory"],
                runtime,
                placement=alone[label]["placement"],
                fallbacks=alone[label]["fallbacks"],
                facts={"runtime": runtime, "resolver": resolver, "inputs_matched_by": alone[label]["matched_by"]},
            )
            for label in job.artifacts
        }


def load(job: ProfileJob, label: str) -> together.Loaded:
    """An interpreter on the file, with the job's threads and resolver."""
    from edgeredux.runners.tflite_interpreter import Model

    resolver = options.read(Options, job.options, WHERE).resolver
    model = Model(job.artifacts[label], resolver, job.threads, job.first_feed(label))
    return together.Loaded(model.fit, model.run)


def examine(job: ProfileJob, label: str) -> dict[str, Any]:
    """In a child: peak memory of one file, and which kernels take which operators."""
    from edgeredux.runners.tflite_interpreter import Model, counted

    resolver, path = options.read(Options, job.options, WHERE).resolver, job.artifacts[label]
    memory = together.peak_memory(job, label, lambda: load(job, label), "LiteRT")
    model = Model(path, resolver, job.threads, job.first_feed(label))
    taken, left = model.placement()
    if resolver == "xnnpack":
        if not taken:
            raise ArtifactError(
                f"{path.name}: the XNNPACK delegate took none of {len(left)} operators; set the target's resolver to "
                "builtin_without_default_delegates if that is wanted"
            )
    elif taken:
        raise ArtifactError(f"{path.name}: a delegate took {len(taken)} operators though resolver is {resolver}")
    placement = {"XNNPACK": len(taken)} if taken else {}
    if left:
        placement[_KERNELS[resolver]] = len(left)
    return {
        "memory": memory,
        "placement": placement,
        "fallbacks": counted(left) if resolver == "xnnpack" else (),
        "matched_by": model.matched_by,
    }


def run_all(job: ProfileJob) -> together.Together:
    """In a child: all files together."""
    return together.measure_all(job, lambda label: load(job, label))


def _words(resolver: Resolver) -> str:
    return {
        "xnnpack": "XNNPACK delegate",
        "builtin_without_default_delegates": "built-in kernels without delegates",
        "reference": "reference kernels",
    }[resolver]
