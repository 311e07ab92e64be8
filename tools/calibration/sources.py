"""Each source of measurements: its rows, the operators of its models, how its hardware computes, who gets the fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from calibration import tables
from edgeredux.prediction.operators import Operator

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Source:
    """A table of measurements. `targets`: the shipped target that gets the fit of a device."""

    name: str
    style: str
    quantity: str
    file: str
    url: str
    date: str
    said: str
    read: Callable[[Path, set[str]], list[tables.Row]]
    operators: Callable[[], Mapping[str, list[Operator]]]
    targets: Mapping[str, str]
    asked_median: float


def _ncnn_graphs() -> dict[str, list[Operator]]:
    from calibration import ncnn_param

    paths = [p for p in sorted((DATA / "profiles-ncnn").glob("*.param")) if ".ncnn." not in p.name]
    return {path.stem: ncnn_param.operators(path) for path in paths}


_TINY_FILES = {
    "ad": "anomaly_detection/trained_models/ad01_int8.tflite",
    "ic": "image_classification/trained_models/pretrainedResnet_quant.tflite",
    "kws": "keyword_spotting/trained_models/kws_ref_model.tflite",
    "vww": "visual_wake_words/trained_models/vww_96_int8.tflite",
}


def _tiny_graphs() -> dict[str, list[Operator]]:
    from edgeredux.prediction import tflite_graph

    folder = DATA / "model-mlperf-tiny" / "benchmark" / "training"
    return {task: tflite_graph.operators(folder / name) for task, name in _TINY_FILES.items()}


def aihub_graphs(names: Sequence[str] | None = None) -> dict[str, list[Operator]]:
    """Operators by architecture, from a cache in the user's folder while definitions and libraries stay the same."""
    from calibration import architectures

    wanted = list(architectures.TABLE) if names is None else list(names)
    place = Path.home() / ".cache" / "edgeredux" / "architectures" / f"{_definitions()}.json"
    kept: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    missing = [name for name in wanted if name not in kept]
    for name in missing:
        kept[name] = [asdict(operator) for operator in architectures.operators(name)]
    if missing:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(kept), encoding="utf-8")
    return {name: [Operator(**operator) for operator in kept[name]] for name in wanted}


def _definitions() -> str:
    digest = hashlib.sha256()
    for name in ("architectures", "blocks", "detection", "segmentation", "superresolution", "traced"):
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    digest.update((ROOT / "edgeredux" / "prediction" / "operators.py").read_bytes())
    for package in ("torch", "torchvision", "timm", "transformers"):
        try:
            digest.update(version(package).encode())
        except PackageNotFoundError:
            digest.update(b"none")
    return digest.hexdigest()[:24]


_TINY_TARGETS = {"NUCLEO_L4R5ZI": "nucleo-l4r5zi", "NUCLEO_U575ZI_Q": "nucleo-u575zi-q"}
_TINY_SAID = "MLPerf Tiny v1.2 and v1.3 closed results, Apache-2.0"
_TINY_URL = "https://github.com/mlcommons/tiny_results_v1.3"
SOURCES = (
    Source(
        name="aihub",
        style="npu",
        quantity="latency",
        file="qualcomm_aihub_perf.csv",
        url="https://github.com/quic/ai-hub-models",
        date="2026-02",
        said="Qualcomm AI Hub Models performance tables, BSD-3-Clause",
        read=tables.aihub,
        operators=aihub_graphs,
        targets={
            "galaxy-s24-npu": "Samsung Galaxy S24",
            "snapdragon-8-gen-3": "Samsung Galaxy S24",
            "galaxy-s25-npu": "Samsung Galaxy S25",
            "snapdragon-8-elite": "Samsung Galaxy S25",
            "snapdragon-8-elite-gen-5": "Snapdragon 8 Elite Gen 5 QRD",
            "dragonwing-iq-9075": "Dragonwing IQ-9075 EVK",
            "dragonwing-qcs6490": "Dragonwing RB3 Gen 2 Vision Kit",
        },
        asked_median=0.20,
    ),
    Source(
        name="ncnn",
        style="cpu",
        quantity="latency",
        file="ncnn_benchmark.csv",
        url="https://github.com/Tencent/ncnn/blob/master/benchmark/README.md",
        date="2026-11",
        said="ncnn's benchmark table, BSD-3-Clause",
        read=tables.ncnn,
        operators=_ncnn_graphs,
        targets={
            "raspberry-pi-4": "Raspberry Pi 4 Model B Broadcom BCM2711B0, Cortex-A72 (ARMv8) (1.8GHz x 4)",
            "raspberry-pi-5": "Raspberry Pi 5 Broadcom BCM2712, Cortex-A76 (ARMv8) (2.4GHz x 4)",
        },
        asked_median=0.20,
    ),
    Source(
        name="tiny-latency",
        style="mcu",
        quantity="latency",
        file="mlperf_tiny_v1.2_v1.3.csv",
        url=_TINY_URL,
        date="2025-09",
        said=_TINY_SAID,
        read=lambda path, known: tables.tiny(path, "latency"),
        operators=_tiny_graphs,
        targets={target: device for device, target in _TINY_TARGETS.items()},
        asked_median=0.35,
    ),
    Source(
        name="tiny-energy",
        style="mcu",
        quantity="energy",
        file="mlperf_tiny_v1.2_v1.3.csv",
        url=_TINY_URL,
        date="2025-09",
        said=_TINY_SAID,
        read=lambda path, known: tables.tiny(path, "energy"),
        operators=_tiny_graphs,
        targets={target: device for device, target in _TINY_TARGETS.items()},
        asked_median=0.35,
    ),
)
