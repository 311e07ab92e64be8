"""The published measurements as rows: device, numeric format, runtime, threads, model, milliseconds."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

# The same graph under several names: left out together.
_TWINS = {"depth_anything_v2": "depth_anything", "esrgan": "real_esrgan_x4plus"}
# Compiled ahead of time or on the device, the same library executes.
_RUNTIMES = {"precompiled_qnn_onnx": "onnx", "qnn_context_binary": "qnn_dlc"}
_ARM = re.compile(
    r"Cortex|KunPeng|Kunpeng|Phytium|Kyro|MacBook.*M\d|Apple|Jetson|Rockchip|Raspberry|Oryon|D64ps|iPhone|QRB2210"
)
_NOT_ARM = re.compile(r"Core i7|Loongson|Sunway|C906|M1 \(Spacemit")


@dataclass(frozen=True)
class Row:
    """One model on one device: the median where the table has it several times."""

    device: str
    dtype: str
    runtime: str
    threads: int
    model: str  # the key of its architecture
    twin: str  # what is left out together with it
    value: float


def aihub(path: Path, known: set[str]) -> list[Row]:
    """Rows of AI Hub's table that ran wholly on the NPU, of the models whose architecture is known."""
    found: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for row in _read(path):
        if row["primary_compute_unit"] != "NPU" or _number(row["layers_cpu"]) or _number(row["layers_gpu"]):
            continue
        model = row["model"] if row["model"] in known else f"{row['model']}/{row['component']}"
        if row["latency_ms"] and model in known and row["precision"] in ("float", "w8a8", "w8a16"):
            runtime = _RUNTIMES.get(row["runtime"], row["runtime"])
            found[row["device"], row["precision"], runtime, model].append(float(row["latency_ms"]))
    return [
        Row(device, dtype, runtime, 1, model, _twin(model), median(values))
        for (device, dtype, runtime, model), values in sorted(found.items())
    ]


def ncnn(path: Path, known: set[str], *, arm: bool = True) -> list[Row]:
    """Rows of ncnn's table taken on processors, Arm's or all others; the fastest of a row's runs, as it prints."""
    found: dict[tuple[str, str, int, str], list[float]] = defaultdict(list)
    for row in _read(path):
        is_arm = bool(_ARM.search(row["device"])) and not _NOT_ARM.search(row["device"])
        model = row["model"].replace("-", "_") if row["model"].replace("-", "_") in known else row["model"]
        if (
            row["gpu_device"] not in ("", "-1")
            or model not in known
            or is_arm is not arm
            or _number(row["min_ms"]) <= 0
        ):
            continue
        dtype = "int8" if model.endswith("_int8") else "float"
        found[row["device"], dtype, int(row["num_threads"]), model].append(float(row["min_ms"]))
    return [
        Row(device, dtype, "ncnn", threads, model, model.removesuffix("_int8"), median(values))
        for (device, dtype, threads, model), values in sorted(found.items())
    ]


def tiny(path: Path, quantity: str) -> list[Row]:
    """MLPerf Tiny's single-shot tasks on microcontrollers: `latency` in ms or `energy` in mJ."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    column, scale = ("latency_ms", 1.0) if quantity == "latency" else ("energy_uJ_per_inf", 1e-3)
    for row in _read(path):
        if row[column] and row["task"] in ("ad", "ic", "kws", "vww"):
            dtype = "float" if row["system"].endswith("_float") else "int8"
            found[row["system"], dtype, row["task"]].append(float(row[column]) * scale)
    return [
        Row(system, dtype, "any", 1, task, task, median(values))
        for (system, dtype, task), values in sorted(found.items())
    ]


def _twin(model: str) -> str:
    if model.startswith("opus_mt_"):
        return model.rpartition("/")[2]
    return _TWINS.get(model, model)


def _number(text: str) -> float:
    return float(text) if text else 0.0


def _read(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
