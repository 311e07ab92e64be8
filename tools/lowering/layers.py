"""One linear layer, its weight in tiles at random, lowered by the passes, beside ONNX Runtime's dense layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeredux.passes.onnx.int8_dynamic import Int8Dynamic
from edgeredux.passes.onnx.tile import Tile
from edgeredux.seams import PassContext
from lowering.timing import compare

SHAPES = ((768, 3072), (3072, 768), (2048, 8192))
TOKENS = (1, 16, 128)
TILES = ((1, 16), (2, 16), (2, 32), (4, 16), (4, 32), (4, 64), (8, 16))
DENSITIES = (0.5, 0.25)


def measure_layer(
    shape: tuple[int, int], tokens: int, threads: int, kind: str, rounds: int, folder: Path
) -> list[dict[str, Any]]:
    """One row per density and tile: {"shape", "tokens", "kind", "density", "tile", "gain", "wall_gain", ...}."""
    context = PassContext([], folder / "log", folder, threads=threads)
    random = np.random.default_rng(0)
    inputs, outputs = shape
    weight = random.normal(0, 0.02, (inputs, outputs)).astype(np.float32)
    files = {"dense": _file(folder / "dense.onnx", weight)}
    for density in DENSITIES:
        for bands, width in TILES:
            label = f"{density:g} {bands}x{width}"
            tiled = _tiled(weight, bands, width, density, random)
            source = _file(folder / f"{label}.onnx", tiled)
            files[label] = folder / f"{label} lowered.onnx"
            step = Tile(minimum_gain=0, tokens=tokens, int8=kind == "int8", most_bands=bands)
            change = step.run(source, files[label], context)
            if not change.changed:  # the cost rule knows no decline at a minimum gain of 0
                raise RuntimeError(f"{shape} {label}: {change.why}")
    if kind == "int8":
        for label, path in files.items():
            made = path.with_suffix(".int8.onnx")
            Int8Dynamic().run(path, made, context)
            files[label] = made
    x = random.normal(size=(1, tokens, inputs)).astype(np.float32)
    timed = compare(files, {"x": x}, threads, rounds)
    rows = []
    for label in files:
        if label != "dense":
            density, tile = label.split()
            rows.append(
                {
                    "shape": list(shape),
                    "tokens": tokens,
                    "threads": threads,
                    "kind": kind,
                    "density": float(density),
                    "tile": tile,
                    "gain": timed.gain(label, "dense"),
                    "wall_gain": timed.gain(label, "dense", clock="wall"),
                    "dense_ms": timed.median("dense"),
                    "noise": list(timed.noise),
                }
            )
    return rows


def _tiled(weight: np.ndarray, bands: int, width: int, density: float, random: Any) -> np.ndarray:
    """The weight [inputs, outputs] with zeros of the pattern tile:`bands`x`width`, blocks of every band at random."""
    made = np.zeros_like(weight)
    blocks, size = weight.shape[0] // width, weight.shape[1] // bands
    for band in range(bands):
        kept = random.choice(blocks, round(blocks * density), replace=False)
        rows = (kept[:, None] * width + np.arange(width)).reshape(-1)
        made[rows, band * size : (band + 1) * size] = weight[rows, band * size : (band + 1) * size]
    return made


def _file(path: Path, weight: np.ndarray) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "s", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path
