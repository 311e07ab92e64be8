"""Linear layers, their weights in tiles at random, lowered by the passes, beside ONNX Runtime's own dense layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgeredux.passes.onnx.int8_dynamic import Int8Dynamic
from edgeredux.passes.onnx.tile import Tile
from edgeredux.seams import PassContext
from lowering.timing import How, compare

SHAPES = ((768, 3072), (3072, 768), (2048, 8192))
TOKENS = (1, 16, 128)
TILES = ((1, 16), (1, 32), (2, 16), (2, 64))
DENSITIES = (0.5, 0.25)
# float; int8 with one scale a weight, as quantize_dynamic makes it unasked; int8 with one scale an output column.
KINDS = ("float", "int8", "int8 columns")
_WEIGHTS = 2**24  # of a graph of several layers
_SHORT = 16  # positions up to which a call from Python, some 4 us, is more than 1 % of a small layer


def measure_layer(
    shape: tuple[int, int], tokens: int, kind: str, tile: tuple[int, int], how: How, folder: Path
) -> list[dict[str, Any]]:
    """One row per density: {"shape", "tokens", "kind", "density", "tile", "gain", "alone", "dense_us", ...}.

    `gain` is of the layer as a model has it, the call from Python left out of account: small layers at few positions
    stand 7 in a graph, each with weights, input and output of its own. `alone` is of a call of one layer.
    """
    found: dict[str, dict[int, Any]] = {}
    copies = max(1, _WEIGHTS // (shape[0] * shape[1])) if tokens <= _SHORT else 1
    for count in sorted({1, copies}):
        place = folder / f"{count}"
        place.mkdir()
        files = _files(shape, tokens, how.threads, kind, tile, count, place)
        random = np.random.default_rng(1)
        feed = {f"x{i}": random.normal(size=(1, tokens, shape[0])).astype(np.float32) for i in range(count)}
        timed = compare(files, feed, how)
        for label, path in files.items():
            size = path.stat().st_size / files["dense"].stat().st_size
            found.setdefault(label, {})[count] = timed, size
    rows = []
    for density in DENSITIES:
        timed, size = found[f"{density:g}"][copies]
        alone, _ = found[f"{density:g}"][1]
        label = f"{density:g}"
        rows.append(
            {
                "shape": list(shape),
                "tokens": tokens,
                "threads": how.threads,
                "kind": kind,
                "density": density,
                "tile": "{}x{}".format(*tile),
                "layers": copies,
                "gain": timed.gain(label, "dense"),
                "wall_gain": timed.wall_gain(label, "dense"),
                "alone": alone.gain(label, "dense"),
                "dense_us": timed.median("dense") * 1e3 / copies,
                "us": timed.median(label) * 1e3 / copies,
                "size": size,
                "calls": int(timed.undisturbed(label).sum()) if how.threads > 1 else how.rounds,
                "noise": sorted({*timed.noise, *alone.noise}),
            }
        )
    return rows


def _files(
    shape: tuple[int, int], tokens: int, threads: int, kind: str, tile: tuple[int, int], count: int, folder: Path
) -> Mapping[str, Path]:
    """The file `dense`, by ONNX Runtime's own quantiser where it is int8, and one lowered for each density."""
    context = PassContext([], folder / "log", folder, threads=threads)
    random = np.random.default_rng(0)
    weights = [random.normal(0, 0.02, shape).astype(np.float32) for _ in range(count)]
    files = {"dense": _file(folder / "dense.onnx", weights)}
    for density in DENSITIES:
        source = _file(folder / f"{density:g}.onnx", [_tiled(weight, *tile, density, random) for weight in weights])
        made = files[f"{density:g}"] = folder / f"{density:g} lowered.onnx"
        step = Tile(minimum_gain=0, tokens=tokens, int8=kind != "float", most_bands=tile[0])
        change = step.run(source, made, context)
        if not change.changed:  # the cost rule knows no decline at a minimum gain of 0
            raise RuntimeError(f"{shape} {tile} {density:g}: {change.why}")
    if kind != "float":
        per_column = kind == "int8 columns"
        for label, path in files.items():
            files[label] = path.with_suffix(".int8.onnx")
            if label == "dense":
                quantize_dynamic(path, files[label], per_channel=per_column, weight_type=QuantType.QInt8)
            else:
                Int8Dynamic(per_channel=per_column, tokens=tokens).run(path, files[label], context)
    return files


def _tiled(weight: np.ndarray, bands: int, width: int, density: float, random: Any) -> np.ndarray:
    """The weight [inputs, outputs] with zeros of the pattern tile:`bands`x`width`, blocks of every band at random."""
    made = np.zeros_like(weight)
    blocks, size = weight.shape[0] // width, weight.shape[1] // bands
    for band in range(bands):
        kept = random.choice(blocks, round(blocks * density), replace=False)
        rows = (kept[:, None] * width + np.arange(width)).reshape(-1)
        made[rows, band * size : (band + 1) * size] = weight[rows, band * size : (band + 1) * size]
    return made


def _file(path: Path, weights: Sequence[np.ndarray]) -> Path:
    """Layers beside one another, x0 to y0, x1 to y1, ..., so that no two share an activation's quantisation."""
    inputs, outputs = weights[0].shape
    numbers = range(len(weights))
    graph = helper.make_graph(
        [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"], name=f"layer{i}") for i in numbers],
        "layers",
        [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["b", "s", inputs]) for i in numbers],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["b", "s", outputs]) for i in numbers],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path
