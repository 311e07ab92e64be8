"""Passes that make use of zeros and passes that quantise, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_graphs import kinds, save

from edgeredux import registry
from edgeredux.execute import run_onnx
from edgeredux.parity import compare
from edgeredux.rewrite import malformed
from edgeredux.seams import PassContext, Tolerance
from edgeredux.shipping import packed

Array = np.ndarray[Any, Any]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(21)


def network(path: Path, rng: np.random.Generator) -> Path:
    """A normalised layer in two bands, then a layer with dead neurons and scattered zeros, then the output."""
    banded = rng.normal(size=(256, 512)).astype(np.float32) / 16
    banded[:128, 256:] = banded[128:, :256] = 0
    dead = rng.normal(size=(512, 128)).astype(np.float32) / 22
    dead[rng.random(dead.shape) < 0.4] = 0
    dead[:, 40:80] = 0
    last = rng.normal(size=(128, 64)).astype(np.float32) / 11
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"], name="norm"),
        helper.make_node("MatMul", ["n", "banded"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "dead"], ["m"], name="second"),
        helper.make_node("Add", ["m", "bias"], ["b"]),
        helper.make_node("Relu", ["b"], ["s"]),
        helper.make_node("MatMul", ["s", "last"], ["y"], name="third"),
    ]
    gain = np.exp(rng.normal(size=256)).astype(np.float32)
    weights = {"gain": gain, "shift": rng.normal(size=256).astype(np.float32), "banded": banded, "dead": dead}
    weights |= {"bias": rng.normal(size=128).astype(np.float32) / 4, "last": last}
    shapes = {"x": (TensorProto.FLOAT, ["n", 256])}, {"y": (TensorProto.FLOAT, ["n", 64])}
    return save(path, nodes, *shapes, weights)


LISTS: dict[str, tuple[list[tuple[str, dict[str, Any]]], float]] = {
    "tiled int8": ([("tile", {"minimum_gain": 0, "int8": True}), ("int8_dynamic", {})], 0.999),
    "dead int4": ([("dead_structure", {}), ("int4_weights", {"method": "gptq"})], 0.98),
    "dead tiled smooth int8": (
        [
            ("dead_structure", {}),
            ("smooth_scales", {}),
            ("tile", {"minimum_gain": 0, "int8": True}),
            ("int8_dynamic", {}),
        ],
        0.999,
    ),
    "dead tiled int4 fp16": (
        [("dead_structure", {}), ("tile", {"minimum_gain": 0}), ("int4_weights", {}), ("fp16", {})],
        0.98,
    ),
    "dead static": ([("dead_structure", {}), ("smooth_scales", {}), ("int8_static", {"cosine": 0.999})], 0.999),
}


@pytest.mark.parametrize("case", sorted(LISTS))
def test_what_composes(tmp_path: Path, rng: np.random.Generator, case: str) -> None:
    listed, least = LISTS[case]
    source, feeds = (
        network(tmp_path / "m.onnx", rng),
        [{"x": rng.normal(size=(16, 256)).astype(np.float32)} for _ in range(8)],
    )
    context = PassContext(feeds, tmp_path / "log", tmp_path)
    changes, current = {}, source
    for name, options in listed:  # in this process; test_rewrite.py has them in children
        following = tmp_path / f"{name}.onnx"
        changes[name] = registry.create("pass", name, options, case).run(current, following, context)
        assert changes[name].changed, changes[name].why
        assert malformed(current, following) is None
        current = following
    counted = next(change for name, change in changes.items() if name.startswith("int")).details["zeros"]
    assert counted["after"] >= counted["before"] > 10_000
    assert all(change.details.get("zeros", {}).get("not_found", []) == [] for change in changes.values())
    if "dead_structure" in changes:  # 40 neurons are gone before anything is quantised
        assert [512, 88] in [list(item.dims) for item in onnx.load(tmp_path / "dead_structure.onnx").graph.initializer]
    if "tile" in changes:
        assert kinds(current)["Concat"] >= 1
    fresh = [{"x": rng.normal(size=(16, 256)).astype(np.float32)}]
    found = compare(run_onnx(str(source), fresh, 1), run_onnx(str(current), fresh, 1), Tolerance("", cosine=least))
    assert found["passed"], found["reason"]
    packed.pack(current, tmp_path / "m.erpack")
    packed.unpack(tmp_path / "m.erpack", tmp_path / "shipped")
    assert (tmp_path / "shipped" / current.name).read_bytes() == current.read_bytes()
