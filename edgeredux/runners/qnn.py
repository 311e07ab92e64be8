"""Snapdragon's NPU through Qualcomm's own HTP library, which simulates the NPU's arithmetic on this machine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux import isolated, measure
from edgeredux.artifact import Format, sha256_file
from edgeredux.errors import ArtifactError, one_line
from edgeredux.readings import Missing
from edgeredux.runners import inputs, options
from edgeredux.seams import DeviceProfile, ProfileJob

WHERE = "runner qnn"
INSTALL = "pip install 'edgeredux[snapdragon]'"
PROVIDER = "QNNExecutionProvider"
_NO_DEVICE = "no Snapdragon device is attached, and the time its simulator takes on this machine is not the NPU's"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Options:
    """What a target must say: the chip by Qualcomm's numbers (QNN SDK, "Supported Snapdragon devices")."""

    soc_model: Annotated[int, Field(ge=1, le=10_000)]
    htp_arch: Literal[68, 69, 73, 75, 79, 81]
    finalization: Annotated[int, Field(ge=0, le=3)] = 3  # effort of the graph compiler: 3 is the most


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Qnn:
    """Outputs and placement simulated; latency, energy and memory are Missing until a device is attached.

    The file is compiled for the target's chip into an EPContext model and its binary, which are kept: they are what a
    phone loads. Operators that stayed on the CPU are listed. It is an error when the NPU took none.
    """

    formats: ClassVar[tuple[Format, ...]] = ("onnx",)
    untimed: ClassVar[bool] = True

    def check(self, options_: Mapping[str, Any]) -> None:
        """Raise TargetError on unknown options, EnvironmentProblem without onnxruntime-qnn."""
        options.read(Options, options_, WHERE)
        options.version("onnxruntime-qnn", "onnxruntime-qnn (Qualcomm's HTP library)", INSTALL)

    def profile(self, job: ProfileJob) -> dict[str, DeviceProfile]:
        """One profile per file. Raises ArtifactError, one line, on a file that the NPU's compiler does not take."""
        self.check(job.options)
        return {label: self._profile_one(job, label) for label in job.artifacts}

    def _profile_one(self, job: ProfileJob, label: str) -> DeviceProfile:
        path = job.artifacts[label]
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file")
        chosen = options.read(Options, job.options, WHERE)
        found: dict[str, Any] = isolated.call(
            f"{__name__}:compile_and_run", {"job": job, "label": label}, log=job.log, what=f"QNN on {path.name}"
        )
        library = f"onnxruntime-qnn {options.version('onnxruntime-qnn', 'onnxruntime-qnn', INSTALL)}"
        missing = Missing(_NO_DEVICE)
        return DeviceProfile(
            readings={
                "latency_ms": missing,
                "throughput_per_s": missing,
                "energy_mj": measure.energy(job.energy, None, 1, missing),
                "memory_mb": missing,
            },
            outputs=found["outputs"] or None,
            outputs_source="simulated" if found["outputs"] else None,
            outputs_how=f"{library}'s HTP library on this machine, soc_model {chosen.soc_model}, "
            f"htp_arch {chosen.htp_arch}"
            if found["outputs"]
            else "",
            placement={"NPU": found["npu"], "CPU": len(found["cpu"])},
            fallbacks=tuple(found["cpu"]),
            facts={
                "library": library,
                "soc_model": chosen.soc_model,
                "htp_arch": chosen.htp_arch,
                "npu_operators": found["npu_operators"],
                "context_bytes": sum(file.stat().st_size for file in found["files"].values()),
            },
            files=found["files"],
        )


def compile_and_run(job: ProfileJob, label: str) -> dict[str, Any]:
    """In a child: compile one file for the chip, keep the context, count operators, run the quality feeds."""
    import onnxruntime as ort
    import onnxruntime_qnn

    from edgeredux.runners import ort_session

    path = job.artifacts[label]
    chosen = options.read(Options, job.options, WHERE)
    library = Path(onnxruntime_qnn.get_library_path())
    ort.register_execution_provider_library(PROVIDER, str(library))
    devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    if not devices:
        raise ArtifactError(f"{path.name}: onnxruntime-qnn offers no device on this machine")
    # Named by the model's own hash: the context names its binary, and the same model must give the same bytes.
    stem = f"{label}_{sha256_file(path)[:12]}_soc{chosen.soc_model}"
    folder = job.scratch / f"qnn-{label}"
    folder.mkdir(parents=True, exist_ok=True)
    context = folder / f"{stem}_ctx.onnx"
    wanted = ort_session.session_options(job.threads, "all")
    wanted.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    wanted.add_session_config_entry("ep.context_enable", "1")
    wanted.add_session_config_entry("ep.context_file_path", str(context))
    wanted.add_session_config_entry("ep.context_embed_mode", "0")
    wanted.add_provider_for_devices(
        devices[:1],
        {
            "backend_path": str(library.with_name("libQnnHtp.so")),
            "htp_graph_finalization_optimization_mode": str(chosen.finalization),
            "soc_model": str(chosen.soc_model),
            "htp_arch": str(chosen.htp_arch),
        },
    )
    session = ort_session.load(path, lambda: ort.InferenceSession(str(path), wanted))
    npu: Counter[str] = Counter()
    cpu: list[str] = []
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            if part.ep_name == PROVIDER:
                npu[node.op_type] += 1
            else:
                cpu.append(one_line(f"{node.op_type} {node.name}", 120))
    if not npu:
        raise ArtifactError(
            f"{path.name}: the NPU takes none of its {len(cpu)} operators; it takes QDQ models of fixed shape "
            "(pass qdq_static)"
        )
    ports = ort_session.ports(session.get_inputs(), path.name)
    feeds = job.quality_feeds[label]
    outputs = [ort_session.run(session, inputs.fit(feed, ports, path.name), path.name) for feed in feeds]
    files = {file.name: file for file in sorted(folder.iterdir()) if file.name.startswith(stem)}
    if not context.is_file():
        raise ArtifactError(f"{path.name}: QNN wrote no context file")
    return {
        "npu": sum(npu.values()),
        "npu_operators": json.loads(json.dumps(dict(sorted(npu.items())))),
        "cpu": sorted(cpu),
        "outputs": outputs,
        "files": files,
    }
