"""ARM64 without a board: the aarch64 builds of ONNX Runtime and LiteRT under qemu-user, core by core.

Answers are `simulated`; time, memory and energy are Missing, because an emulator's mean nothing. Answers are compared
with this machine's: an instruction that the core has not, a crash or another result is a finding in the report.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux import bundle, parity
from edgeredux.agent import process
from edgeredux.arm64 import cores, emulator, root
from edgeredux.artifact import Format
from edgeredux.caching import is_present
from edgeredux.errors import ArtifactError
from edgeredux.execute import execute
from edgeredux.readings import AnyReading, Missing
from edgeredux.remote import job
from edgeredux.runners import options
from edgeredux.runners.litert import Resolver
from edgeredux.seams import DeviceProfile, Feed, ProfileJob, Tolerance

WHERE = "runner qemu_arm64"
_NO_TIME = "emulated time means nothing"
_EQUAL = Tolerance("the same bytes; another instruction set's kernels only add in another order", atol=1e-4, rtol=1e-4)
# An int8 value on the edge of rounding may fall on the other side after that, and moves all that follows a little: two
# of twelve sentences of MiniLM, cosine 0.991 and more, as between two of ONNX Runtime's levels on one x86. A kernel
# that computes something else gives a cosine near 0 (docs/decisions/arm64-sim.md).
_RIGHT = Tolerance("int8 values on the edge of rounding may fall on the other side", cosine=0.98)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Options:
    """What a target may set. `core`: the processor; max is all that qemu knows, and no processor that is made.
    `optimization` is for .onnx files, `resolver` for .tflite ones.
    """

    core: cores.Core = "cortex-a76"
    optimization: Literal["all", "extended", "basic", "none"] = "all"
    resolver: Resolver = "xnnpack"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class QemuArm64:
    """Each file in a process of its own; what went wrong in one says nothing about the others."""

    formats: ClassVar[tuple[Format, ...]] = ("onnx", "tflite")

    def check(self, options_: Mapping[str, Any]) -> None:
        """Raise TargetError on wrong options, EnvironmentProblem without qemu or the root."""
        options.read(Options, options_, WHERE)
        root.require()

    def profile(self, job_: ProfileJob) -> dict[str, DeviceProfile]:
        """Outputs simulated; every reading Missing. Facts: core, equal_to_host, .., findings if any."""
        given = options.read(Options, job_.options, WHERE)
        place = root.require()
        folder = _lay(job_, given, place)
        try:
            return {label: _one(job_, given, place, folder, label) for label in job_.artifacts}
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _lay(job_: ProfileJob, given: Options, place: Path) -> Path:
    """The agent's job for all files, as a folder here."""
    local, folder = job_.scratch / "arm64-sent", job_.scratch / "arm64-job"
    for path in (local, folder):
        shutil.rmtree(path, ignore_errors=True)
    local.mkdir(parents=True)
    work = job.Work(
        models=job_.artifacts,
        latency=dict.fromkeys(job_.artifacts, ()),
        quality={label: _feeds(job_, label) for label in job_.artifacts},
        threads=job_.threads,
        repeats=0,
        warmup=0,
        options={"optimization": given.optimization, "resolver": given.resolver},
        site=(str(place / "site"),),
    )
    for name, path in job.assemble(work, "answers", local).items():
        bundle.place(path, folder / name)
    (folder / process.OUT).mkdir()
    shutil.rmtree(local)
    return folder


def _one(job_: ProfileJob, given: Options, place: Path, folder: Path, label: str) -> DeviceProfile:
    path = job_.artifacts[label]
    arguments = ["-c", process.BOOT, str(folder), "answers", str(folder), label]
    ended = emulator.run(place, given.core, arguments)
    with job_.log.open("a", encoding="utf-8") as log:
        log.write(f"{path.name} on {given.core}: exit code {ended.code} {ended.words}\n")
    said_file = folder / process.OUT / f"answers-{label}.json"
    if not said_file.is_file():
        how = f"ended with {ended.signal or f'exit code {ended.code}'}"
        if ended.signal == "SIGILL":
            how = f"used an instruction that {given.core} has not (SIGILL)"
        return _failed(given, f"{path.name}: the runtime's arm64 build {how} under qemu; {ended.words}".rstrip("; "))
    said = json.loads(said_file.read_text(encoding="utf-8"))
    if "error" in said:
        if said["kind"] == "artifact":
            raise ArtifactError(f"{WHERE}: {said['error']}")
        return _failed(given, f"{path.name}: {said['error']}")
    outputs = job.read_feeds(folder / process.OUT / said["written"])
    reference = execute(path, _feeds(job_, label), log=job_.log, threads=job_.threads)
    facts = _compared([_without_cache(feed) for feed in reference], outputs, given.core)
    asked = bool(job_.quality_feeds[label])
    return DeviceProfile(
        readings=_absent(),
        outputs=outputs if asked else None,
        outputs_source="simulated" if asked else None,
        outputs_how=f"{said['runtime']} for aarch64, {given.core} under qemu" if asked else "",
        facts={"runtime": said["runtime"], "core": given.core, **facts},
    )


def _compared(reference: list[Feed], outputs: list[Feed], core: str) -> dict[str, Any]:
    """How many answers equal this machine's, the largest difference, and a finding when they are other answers."""
    alone = [parity.compare([want], [have], _EQUAL)["passed"] for want, have in zip(reference, outputs, strict=True)]
    whole = parity.compare(reference, outputs, _RIGHT)
    facts: dict[str, Any] = {
        "equal_to_host": f"{sum(alone)} of {len(alone)} answers within {_EQUAL.atol:g}",
        "difference_from_host": whole["max_abs"],
        "cosine_to_host": whole["mean_cosine"],
    }
    if not whole["passed"] or not any(alone):
        which = "kernels for this core, or the emulator, compute something else"
        if core == "max":
            which = "qemu's max is known to compute int8 kernels wrongly, so this says nothing of a device"
        why = whole.get("reason", "no answer is within 1e-4")
        facts["findings"] = [f"other answers than on this machine: {why}: {which}"]
    return facts


def _failed(given: Options, why: str) -> DeviceProfile:
    return DeviceProfile(readings=_absent(), outputs_how=why, facts={"core": given.core, "findings": [why]})


def _absent() -> dict[str, AnyReading]:
    return dict.fromkeys(("latency_ms", "throughput_per_s", "energy_mj", "memory_mb"), Missing(_NO_TIME))


def _feeds(job_: ProfileJob, label: str) -> list[Feed]:
    return list(job_.quality_feeds[label]) or [job_.first_feed(label)]


def _without_cache(outputs: Feed) -> Feed:
    return {name: value for name, value in outputs.items() if not is_present(name)}
