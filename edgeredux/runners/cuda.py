"""An NVIDIA GPU of this machine through ONNX Runtime's CUDA or TensorRT provider."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux import isolated
from edgeredux.artifact import Format
from edgeredux.errors import ArtifactError, EnvironmentProblem, one_line
from edgeredux.readings import Missing
from edgeredux.runners import gpu, inputs, options, together
from edgeredux.seams import DeviceProfile, ProfileJob

WHERE = "runner cuda"
INSTALL = "pip install onnxruntime-gpu (in place of onnxruntime)"
_KERNELS = "edgeredux.runners.two_four_kernels"
_NAMES = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Options:
    """`device` is part of the GPU's name: another one's readings are not this target's. `sparsity` lets TensorRT use
    kernels for weights that are 2:4.
    """

    provider: Literal["cuda", "tensorrt"] = "cuda"
    device: str = ""
    sparsity: bool = True


def ready(given: Options) -> gpu.Gpu | Missing:
    """The GPU that can be measured here, or why none can: driver, device, then ONNX Runtime's provider."""
    found = gpu.look()
    if isinstance(found, Missing):
        return found
    if given.device.lower() not in found.name.lower():
        return Missing(f"this machine's GPU is {found.name}, not {given.device}")
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    wanted = _NAMES[given.provider]
    if wanted not in offered:
        return Missing(f"ONNX Runtime {onnxruntime.__version__} has no {wanted} ({', '.join(offered)}); {INSTALL}")
    return found


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Cuda:
    """Latency interleaved from NumPy arrays to NumPy arrays, copies to and from the GPU included.

    Operators that ran on the CPU provider are listed as fallbacks; it is an error when the GPU took none. `layers`:
    each 2:4 weight dense and by PyTorch's 2:4 kernels, which says whether the pattern pays for its shape.
    """

    formats: ClassVar[tuple[Format, ...]] = ("onnx",)

    def check(self, options_: Mapping[str, Any]) -> None:
        """Raise EnvironmentProblem, one line, where the GPU, its driver or the provider is not there."""
        found = ready(options.read(Options, options_, WHERE))
        if isinstance(found, Missing):
            raise EnvironmentProblem(f"{WHERE}: {found.reason}")

    def device(self, options_: Mapping[str, Any]) -> str:
        """The GPU's name and its driver."""
        found = ready(options.read(Options, options_, WHERE))
        return found.reason if isinstance(found, Missing) else f"{found.name}, driver {found.driver}"

    def profile(self, job: ProfileJob) -> dict[str, DeviceProfile]:
        """latency_ms and throughput_per_s measured, energy_mj by the target's meters; Missing without a GPU."""
        found = ready(options.read(Options, job.options, WHERE))
        if isinstance(found, Missing):
            names = ("latency_ms", "throughput_per_s", "energy_mj", "memory_mb")
            why = Missing(f"{WHERE}: {found.reason}")
            nothing = DeviceProfile(readings=dict.fromkeys(names, why), outputs_how=why.reason)
            return dict.fromkeys(job.artifacts, nothing)
        import onnxruntime

        given = options.read(Options, job.options, WHERE)
        job.scratch.mkdir(parents=True, exist_ok=True)
        names_ = ", ".join(path.name for path in job.artifacts.values())
        placed = {
            label: isolated.call(f"{__name__}:place", {"job": job, "label": label}, log=job.log, what=f"{path.name}")
            for label, path in job.artifacts.items()
        }
        ran = isolated.call(f"{__name__}:run_all", {"job": job}, log=job.log, what=f"ONNX Runtime on {names_}")
        driver = f"ONNX Runtime {onnxruntime.__version__} {_NAMES[given.provider]}, driver {found.driver}"
        kernels: dict[str, list[dict[str, Any]] | Missing] = {
            label: isolated.call(
                f"{_KERNELS}:table",
                {"path": path, "positions": _positions(job, label)},
                log=job.log,
                what=f"PyTorch's 2:4 kernels on {path.name}",
            )
            for label, path in job.artifacts.items()
        }
        profiles = {
            label: together.device_profile(
                job,
                label,
                ran,
                Missing("memory on the GPU is not taken"),
                f"{driver} on {found.name}",
                placement=placed[label]["placement"],
                fallbacks=tuple(placed[label]["cpu"]),
                facts={"runtime": driver, "driver": driver, "gpu": found.name, **_said(kernels[label])},
            )
            for label in job.artifacts
        }
        return {
            label: dataclasses.replace(profile, layers=() if isinstance(rows, Missing) else rows)
            for (label, profile), rows in zip(profiles.items(), kernels.values(), strict=True)
        }


def _said(rows: list[dict[str, Any]] | Missing) -> dict[str, Any]:
    return {"two_four_kernels": rows.reason if isinstance(rows, Missing) else f"{len(rows)} layers timed by PyTorch"}


def _positions(job: ProfileJob, label: str) -> int:
    """Rows that a layer's matrix is multiplied with in one run: all but the last axis of the largest input."""
    feed = job.first_feed(label)
    shape = max((array.shape for array in feed.values()), key=math.prod, default=(1,))
    whole = shape if all(array.dtype.kind in "iu" for array in feed.values()) else shape[:-1]
    return max(1, math.prod(whole))


def _session(job: ProfileJob, label: str, profile_to: Path | None = None) -> Any:
    import onnxruntime as ort

    from edgeredux.runners import ort_session

    given, path = options.read(Options, job.options, WHERE), job.artifacts[label]
    wanted = ort_session.session_options(job.threads, "all")
    if profile_to is not None:
        wanted.enable_profiling = True
        wanted.profile_file_prefix = str(profile_to)
    chain: list[Any] = [("CUDAExecutionProvider", {}), ort_session.CPU]
    if given.provider == "tensorrt":
        chain.insert(0, (_NAMES["tensorrt"], {"trt_sparsity_enable": given.sparsity, "trt_fp16_enable": True}))
    session = ort_session.load(path, lambda: ort.InferenceSession(str(path), wanted, providers=chain))
    session.disable_fallback()
    if _NAMES[given.provider] not in session.get_providers():
        got = ", ".join(session.get_providers())
        raise ArtifactError(f"{path.name}: asked for {_NAMES[given.provider]}, got {got}")
    return session


def place(job: ProfileJob, label: str) -> dict[str, Any]:
    """In a child: which provider ran which operator in one run."""
    from edgeredux.runners import ort_session

    path = job.artifacts[label]
    session = _session(job, label, job.scratch / f"cuda-{label}")
    fitted = inputs.fit(job.first_feed(label), ort_session.ports(session.get_inputs(), path.name), path.name)
    ort_session.run(session, fitted, path.name)
    trace = Path(session.end_profiling())
    ran = {
        event["name"]: (event["args"]["provider"], event["args"]["op_name"])
        for event in json.loads(trace.read_text(encoding="utf-8"))
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    }
    trace.unlink()
    placement = Counter(provider for provider, _ in ran.values())
    if set(placement) <= {ort_session.CPU}:
        raise ArtifactError(f"{path.name}: the GPU took none of its {len(ran)} operators")
    left = [one_line(f"{kind} {name}", 120) for name, (provider, kind) in ran.items() if provider == ort_session.CPU]
    return {"placement": dict(placement), "cpu": sorted(left)}


def run_all(job: ProfileJob) -> together.Together:
    """In a child: all files together."""
    from edgeredux.runners import ort_session

    def load(label: str) -> together.Loaded:
        path, session = job.artifacts[label], _session(job, label)
        wanted = ort_session.ports(session.get_inputs(), path.name)
        return together.Loaded(
            fit=lambda feed: inputs.fit(feed, wanted, path.name),
            run=lambda feed: ort_session.run(session, feed, path.name),
        )

    return together.measure_all(job, load)
