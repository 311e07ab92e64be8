"""ONNX Runtime on this machine's CPU: everything measured."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux import isolated
from edgeredux.artifact import Format
from edgeredux.errors import ArtifactError
from edgeredux.readings import AnyReading
from edgeredux.runners import decoding_speed, inputs, options, together
from edgeredux.seams import DeviceProfile, ProfileJob

WHERE = "runner onnxruntime"
INSTALL = "pip install onnxruntime"
PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Options:
    """What a target may set. `optimization` is ONNX Runtime's graph optimisation level."""

    optimization: Literal["all", "extended", "basic", "none"] = "all"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class OnnxRuntimeCpu:
    """Latency interleaved in one child process; memory and placement of each file in a process of its own.

    Latency is one `session.run` from NumPy arrays to NumPy arrays. Peak memory is resident memory above that of a
    process with ONNX Runtime imported and the input at hand. Placement counts the operators that ran, by execution
    provider, in the profile of one run of the optimised graph; any that ran elsewhere than on the CPU provider is an
    error.
    """

    formats: ClassVar[tuple[Format, ...]] = ("onnx",)

    def check(self, options_: Mapping[str, Any]) -> None:
        """Raise TargetError on unknown options, EnvironmentProblem without ONNX Runtime."""
        options.read(Options, options_, WHERE)
        options.version("onnxruntime", "ONNX Runtime", INSTALL)

    def profile(self, job: ProfileJob) -> dict[str, DeviceProfile]:
        """latency_ms, throughput_per_s and memory_mb measured; energy_mj by the target's meters or Missing.

        Raises ArtifactError, one line, on a file that cannot be loaded or run.
        """
        self.check(job.options)
        job.scratch.mkdir(parents=True, exist_ok=True)
        runtime = f"ONNX Runtime {options.version('onnxruntime', 'ONNX Runtime', INSTALL)} {PROVIDER}"
        alone = {
            label: isolated.call(
                f"{__name__}:examine", {"job": job, "label": label}, log=job.log, what=f"ONNX Runtime on {path.name}"
            )
            for label, path in job.artifacts.items()
        }
        names = ", ".join(path.name for path in job.artifacts.values())
        found = isolated.call(f"{__name__}:run_all", {"job": job}, log=job.log, what=f"ONNX Runtime on {names}")
        speeds: dict[str, dict[str, AnyReading]] = {}
        if decoding_speed.is_decoder(job):
            function = f"{decoding_speed.__name__}:measure"
            arguments = {"job": job, "level": options.read(Options, job.options, WHERE).optimization}
            speeds = isolated.call(function, arguments, log=job.log, what=f"generation by {names}")
        profiles = {
            label: together.device_profile(
                job,
                label,
                found,
                alone[label]["memory"],
                runtime,
                placement=alone[label]["placement"],
                facts={"runtime": runtime, "operators": alone[label]["operators"]},
            )
            for label in job.artifacts
        }
        return {
            label: dataclasses.replace(profile, readings={**profile.readings, **speeds.get(label, {})})
            for label, profile in profiles.items()
        }


def load(job: ProfileJob, label: str) -> together.Loaded:
    """A session on the file, with the job's threads and options."""
    from edgeredux.runners import ort_session

    path = job.artifacts[label]
    session = ort_session.cpu_session(path, job.threads, options.read(Options, job.options, WHERE).optimization)
    wanted = ort_session.ports(session.get_inputs(), path.name)
    return together.Loaded(
        fit=lambda feed: inputs.fit(feed, wanted, path.name),
        run=lambda feed: ort_session.run(session, feed, path.name),
    )


def examine(job: ProfileJob, label: str) -> dict[str, Any]:
    """In a child: peak memory of one file, and which provider ran which operator."""
    from edgeredux.runners import ort_session

    memory = together.peak_memory(job, label, lambda: load(job, label), "ONNX Runtime")
    path, level = job.artifacts[label], options.read(Options, job.options, WHERE).optimization
    session = ort_session.cpu_session(path, job.threads, level, job.scratch / f"ort-{label}")
    feed = job.first_feed(label)
    ort_session.run(session, inputs.fit(feed, ort_session.ports(session.get_inputs(), path.name), path.name), path.name)
    trace = Path(session.end_profiling())
    events = json.loads(trace.read_text(encoding="utf-8"))
    trace.unlink()
    ran = {
        event["name"]: (event["args"]["provider"], event["args"]["op_name"])
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    }
    placement = Counter(provider for provider, _ in ran.values())
    if set(placement) != {PROVIDER}:
        raise ArtifactError(f"{path.name}: operators ran on {dict(placement) or 'nothing'}, not on {PROVIDER} alone")
    operators = dict(sorted(Counter(kind for _, kind in ran.values()).items()))
    return {"memory": memory, "placement": dict(placement), "operators": operators}


def run_all(job: ProfileJob) -> together.Together:
    """In a child: all files together."""
    return together.measure_all(job, lambda label: load(job, label))
