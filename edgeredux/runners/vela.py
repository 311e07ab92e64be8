"""Arm Ethos-U through Vela: compiled and scored by Arm's compiler, nothing executed on hardware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux import isolated, measure
from edgeredux.artifact import Format
from edgeredux.errors import ArtifactError, TargetError, unknown
from edgeredux.readings import AnyReading, Missing, Reading
from edgeredux.runners import options, vela_compiler
from edgeredux.seams import DeviceProfile, Feed, ProfileJob

WHERE = "runner vela"
INSTALL = "pip install 'edgeredux[ethos-u]'"
Accelerator = Literal[
    "ethos-u55-32",
    "ethos-u55-64",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-128",
    "ethos-u85-256",
    "ethos-u85-512",
    "ethos-u85-1024",
    "ethos-u85-2048",
]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Options:
    """What a target must say: the NPU, and the system and memory mode by the names of Vela's Arm/vela.ini."""

    accelerator: Accelerator
    system_config: str
    memory_mode: str
    optimise: Literal["Performance", "Size"] = "Performance"

    def arguments(self) -> list[str]:
        """Vela's command line for these."""
        return [
            *("--accelerator-config", self.accelerator),
            *("--system-config", self.system_config),
            *("--memory-mode", self.memory_mode),
            *("--optimise", self.optimise),
        ]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Vela:
    """Latency and memory simulated by Vela, energy by the target's model, outputs by LiteRT's reference kernels.

    Latency is that of the NPU. Operators that stayed on the CPU are listed and are not in it, which its `how` says;
    when one that multiplies matrices is among them the latency is Missing, because the rest is not the model.
    Outputs are those of the same int8 file under the TFLite reference kernels, whose arithmetic Ethos-U implements.
    """

    formats: ClassVar[tuple[Format, ...]] = ("tflite",)

    def check(self, options_: Mapping[str, Any]) -> None:
        """Raise EnvironmentProblem without Vela or LiteRT, TargetError on names that Vela's configuration lacks."""
        chosen = options.read(Options, options_, WHERE)
        options.version("ethos-u-vela", "Vela (Arm's Ethos-U compiler)", INSTALL)
        options.version("ai-edge-litert", "LiteRT", INSTALL)
        for kind, name in (("System_Config", chosen.system_config), ("Memory_Mode", chosen.memory_mode)):
            if name not in (known := vela_compiler.sections(kind)):
                raise TargetError(unknown(kind.lower(), name, known, WHERE))

    def profile(self, job: ProfileJob) -> dict[str, DeviceProfile]:
        """latency_ms, throughput_per_s and memory_mb simulated, energy_mj estimated, or Missing with the reason."""
        self.check(job.options)
        return {label: self._profile_one(job, label) for label in job.artifacts}

    def _profile_one(self, job: ProfileJob, label: str) -> DeviceProfile:
        chosen = options.read(Options, job.options, WHERE)
        path = job.artifacts[label]
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file")
        # LiteRT reads the file first, also when nobody wants outputs: it refuses a damaged one in words, Vela dies.
        outputs: list[Feed] = isolated.call(
            f"{__name__}:execute", {"job": job, "label": label}, log=job.log, what=f"LiteRT on {path.name}"
        )
        found: vela_compiler.Compiled = isolated.call(
            "edgeredux.runners.vela_compiler:compile_file",
            {"source": path, "out_dir": job.scratch / f"vela-{label}", "arguments": chosen.arguments()},
            log=job.log,
            what=f"Vela on {path.name}",
        )
        vela = f"Vela {options.version('ethos-u-vela', 'Vela', INSTALL)}"
        on = f"{chosen.accelerator}, {chosen.system_config} at {found.clock_mhz:.0f} MHz, {chosen.memory_mode}"
        latency = _latency(found, f"{vela}'s performance estimate for {on}")
        litert = options.version("ai-edge-litert", "LiteRT", INSTALL)
        return DeviceProfile(
            readings={
                "latency_ms": latency,
                "throughput_per_s": measure.throughput(latency, job.samples_per_run),
                "energy_mj": measure.energy(job.energy, None, 1, _activity(found, latency)),
                "memory_mb": _memory(found, f"{vela} for {on}"),
            },
            outputs=outputs or None,
            outputs_source="simulated" if outputs else None,
            outputs_how=f"LiteRT {litert} reference kernels on the same file, not {chosen.accelerator} itself"
            if outputs
            else "",
            placement={"NPU": len(found.source) - len(found.fallbacks), "CPU": len(found.fallbacks)},
            fallbacks=tuple(f"{operator.kind} {operator.name}" for operator in found.fallbacks),
            facts={
                "vela": vela,
                "accelerator": chosen.accelerator,
                "system_config": chosen.system_config,
                "memory_mode": chosen.memory_mode,
                "clock_mhz": found.clock_mhz,
                "macs": found.macs,
                "memory_used_bytes": dict(found.used),
                "memory_moved_bytes": dict(found.moved),
                "weight_bytes": dict(found.weight_bytes),
                "cycles": dict(found.cycles),
            },
            files={f"{label}_{chosen.accelerator}_vela.tflite": found.path},
            layers=found.layers,
        )


def _stranded(found: vela_compiler.Compiled) -> str | None:
    """Why the NPU's part is not the model, or None."""
    if len(found.fallbacks) == len(found.source):
        return f"none of {len(found.source)} operators runs on the NPU; it takes int8 and int16 models"
    kinds = sorted({operator.kind for operator in found.fallbacks} & set(vela_compiler.MAC_KINDS))
    if not kinds:
        return None
    count = sum(operator.kind in kinds for operator in found.fallbacks)
    return (
        f"{count} operators with the bulk of the work ({', '.join(kinds)}) stayed on the CPU, which Vela does not time"
    )


def _latency(found: vela_compiler.Compiled, how: str) -> AnyReading:
    if reason := _stranded(found):
        return Missing(reason)
    if found.fallbacks:
        how += f"; NPU part only: {len(found.fallbacks)} operators run on the CPU and are not in it"
    return Reading(found.latency_ms, "ms", "simulated", how=how)


def _memory(found: vela_compiler.Compiled, how: str) -> AnyReading:
    if reason := _stranded(found):
        return Missing(reason)
    used = {name: found.used[name] / 1e6 for name in ("sram", "dram")}
    parts = " + ".join(f"{name.upper()} {size:.2f} MB" for name, size in used.items() if size) or "none"
    flash = (found.used["on_chip_flash"] + found.used["off_chip_flash"]) / 1e6
    how = f"peak use by {how}: {parts}"
    if flash:
        how += f"; weights in flash ({flash:.2f} MB) not counted"
    if found.fallbacks:
        how += "; constants and buffers of operators on the CPU not counted"
    return Reading(sum(used.values()), "MB", "simulated", how=how)


def _activity(found: vela_compiler.Compiled, latency: AnyReading) -> measure.Activity | Missing:
    if isinstance(latency, Missing):
        return latency
    types = sorted({operator.input_type for operator in found.source if operator.kind in vela_compiler.MAC_KINDS})
    if len(types) != 1:
        return Missing(f"multiply-accumulates of {' and '.join(types) or 'no operator'} cannot be told apart")
    moved = {"sram": found.moved["sram"], "dram": found.moved["dram"]}
    flash = found.moved["on_chip_flash"] + found.moved["off_chip_flash"]
    return measure.Activity({types[0]: found.macs}, {**moved, **({"flash": flash} if flash else {})}, latency.value)


def execute(job: ProfileJob, label: str) -> list[Feed]:
    """In a child: the file's outputs under LiteRT's reference kernels, one per quality feed."""
    from edgeredux.runners.tflite_interpreter import Model

    model = Model(job.artifacts[label], "reference", job.threads, job.first_feed(label))
    if sparse := model.sparse_weights():
        raise ArtifactError(
            f"{model.path.name}: {sparse} weights are stored sparse, which Vela would read as dense ones; compile the "
            "file from before pass tflite_sparse_weights (Vela's own encoder compresses zeros)"
        )
    return [model.run(model.fit(feed)) for feed in job.quality_feeds[label]]
