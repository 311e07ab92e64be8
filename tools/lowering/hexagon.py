"""MiniLM's FFN shape as QDQ files with zeros of several patterns, and what Qualcomm's compiler makes of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeredux.errors import ArtifactError
from edgeredux.passes.onnx.qdq_static import QdqStatic
from edgeredux.runners.qnn import Qnn
from edgeredux.seams import PassContext, ProfileJob
from edgeredux.target import Target

KINDS = ("dense", "50 % scattered", "75 % scattered", "90 % scattered", "2:4", "half the neurons")
WIDTH, NEURONS, LAYERS, TOKENS = 384, 1536, 8, 16


def qdq_file(kind: str, folder: Path) -> Path:
    """The QDQ file, 16-bit activations and 8-bit weights, calibrated on random inputs. Seeded: the same every time."""
    logging.getLogger().setLevel(logging.ERROR)  # ONNX Runtime's quantiser recommends its own preprocessing
    random = np.random.default_rng(0)
    neurons = NEURONS // 2 if kind == "half the neurons" else NEURONS
    nodes, weights, current = [], {}, "x"
    for layer in range(LAYERS):
        shape = (WIDTH, neurons) if layer % 2 == 0 else (neurons, WIDTH)
        weight = random.normal(scale=shape[0] ** -0.5, size=shape).astype(np.float32)
        weights[f"w{layer}"] = _pruned(weight, kind)
        out = "y" if layer == LAYERS - 1 else f"r{layer}"
        nodes.append(helper.make_node("MatMul", [current, f"w{layer}"], [f"p{layer}"], f"matmul{layer}"))
        nodes.append(helper.make_node("Relu", [f"p{layer}"], [out], f"relu{layer}"))
        current = out
    place = folder / kind.replace(" ", "-").replace("%", "percent").replace(":", "-")
    place.mkdir()
    graph = helper.make_graph(
        nodes,
        "ffn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, TOKENS, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, TOKENS, WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), place / "f.onnx")
    feeds = [{"x": random.normal(size=(1, TOKENS, WIDTH)).astype(np.float32)} for _ in range(8)]
    change = QdqStatic().run(place / "f.onnx", place / "q.onnx", PassContext(feeds, place / "log", place))
    if not change.changed:
        raise ArtifactError(f"{kind}: {change.why}")
    return place / "q.onnx"


def _pruned(weight: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    """Inputs lie along axis 0; the smallest go, ties by lower index."""
    if "scattered" in kind:
        count = int(int(kind.split()[0]) / 100 * weight.size)
        weight.ravel()[np.argsort(np.abs(weight).ravel(), kind="stable")[:count]] = 0
    elif kind == "2:4":
        groups = weight.reshape(-1, 4, weight.shape[1])
        np.put_along_axis(groups, np.argsort(np.abs(groups), axis=1, kind="stable")[:, :2], 0, axis=1)
    return weight


def context_bytes(path: Path, target: Target, folder: Path) -> int | None:
    """Bytes that the chip's compiled context takes; None where the NPU's compiler refuses the file."""
    (section,) = [runtime for runtime in target.runtimes if runtime.runner == "qnn"]
    feed = {"x": np.zeros((1, TOKENS, WIDTH), np.float32)}
    job = ProfileJob(
        artifacts={"only": path},
        latency_feeds={"only": [feed]},
        quality_feeds={"only": []},
        options=section.options,
        hardware={},
        threads=1,
        repeats=5,
        warmup=1,
        scratch=folder / f"{target.name}-{path.parent.name}",
        log=folder / "log",
    )
    try:
        return int(Qnn().profile(job)["only"].facts["context_bytes"])
    except ArtifactError:
        return None
