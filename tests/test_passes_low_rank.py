"""Low-rank lowering: the nearest matrix of its rank, where two thin products cost less; else a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tiny_graphs import Array, kinds, save

from edgeredux.artifact import Artifact
from edgeredux.passes.onnx.low_rank import LowRank, _rank
from edgeredux.rewrite import rewrite
from edgeredux.seams import PassContext

FLOAT = TensorProto.FLOAT
RANDOM = np.random.default_rng(3)


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    (tmp_path / "scratch").mkdir()
    return PassContext([], tmp_path / "log", tmp_path / "scratch")


def graph(path: Path, weight: Array, kind: str = "MatMul") -> Path:
    """y = x @ weight, or Gemm with its weight turned and a bias."""
    inputs, width = weight.shape
    x, y = {"x": (FLOAT, ["n", inputs])}, {"y": (FLOAT, ["n", width])}
    if kind == "MatMul":
        return save(path, [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")], x, y, {"w": weight})
    bias = RANDOM.normal(size=width).astype(np.float32)
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="layer", transB=1)
    return save(path, [node], x, y, {"w": np.ascontiguousarray(weight.T), "c": bias})


def run(path: Path, x: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def of_rank(rank: int, inputs: int = 256, width: int = 320) -> Array:
    made = RANDOM.normal(size=(inputs, rank)) @ RANDOM.normal(size=(rank, width))
    return np.asarray(made / np.sqrt(rank * inputs), np.float32)


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_a_weight_of_low_rank_becomes_two_and_stays_the_same(kind: str, tmp_path: Path, context: PassContext) -> None:
    source, out = graph(tmp_path / "a.onnx", of_rank(16), kind), tmp_path / "b.onnx"
    change = LowRank(tokens=128).run(source, out, context)
    assert change.changed, change.why
    assert change.details["layers"]["layer"]["rank"] == 16
    assert change.details["macs_after"] == 16 * (256 + 320)
    assert kinds(out) == ({"MatMul": 2} if kind == "MatMul" else {"MatMul": 1, "Gemm": 1})
    assert out.stat().st_size < 0.2 * source.stat().st_size
    x = RANDOM.normal(size=(5, 256)).astype(np.float32)
    # Factors in float32 of singular values in float64.
    np.testing.assert_allclose(run(out, x), run(source, x), atol=2e-5)


def test_against_numpys_nearest_matrix(tmp_path: Path, context: PassContext) -> None:
    """Eckart and Young: the truncated SVD, at the rank that keeps the energy asked for."""
    weight = of_rank(256) + 6 * of_rank(8)
    out = tmp_path / "b.onnx"
    change = LowRank(energy=0.95, tokens=128, cosine=0.5).run(graph(tmp_path / "a.onnx", weight), out, context)
    left, sizes, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    rank = change.details["layers"]["layer"]["rank"]
    squares = sizes**2 / (sizes**2).sum()
    assert squares[: rank - 1].sum() < 0.95 <= squares[:rank].sum()
    given = run(out, np.eye(256, dtype=np.float32))
    np.testing.assert_allclose(given, (left[:, :rank] * sizes[:rank]) @ right[:rank], atol=1e-5)


def test_what_does_not_gain_is_declined_with_its_number(tmp_path: Path, context: PassContext) -> None:
    full = RANDOM.normal(size=(64, 64)).astype(np.float32)
    holes = of_rank(4)
    holes[:, ::2] = 0
    nothing = [helper.make_node("Relu", ["x"], ["y"])]
    for name, path, said in (
        ("full", graph(tmp_path / "full.onnx", full), "below 1.1x"),
        ("holes", graph(tmp_path / "holes.onnx", holes), "50% of its weights are zero"),
        ("none", save(tmp_path / "none.onnx", nothing, {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}, {}), "no MatMul"),
    ):
        change = LowRank().run(path, tmp_path / f"{name}-out.onnx", context)
        assert not change.changed
        assert said in change.why
        assert not (tmp_path / f"{name}-out.onnx").exists()


def test_layers_that_share_a_weight_share_its_factors(tmp_path: Path, context: PassContext) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="a"),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="b"),
        helper.make_node("Gemm", ["b", "w"], ["y"], transB=1, name="c"),  # the same square matrix, turned
    ]
    shape = (FLOAT, ["n", 256])
    source = save(tmp_path / "m.onnx", nodes, {"x": shape}, {"y": shape}, {"w": of_rank(16, 256, 256)})
    change = LowRank(tokens=128).run(source, tmp_path / "out.onnx", context)
    assert change.details["macs_after"] == 3 * 16 * 512
    sizes = [len(item.raw_data) for item in onnx.load(tmp_path / "out.onnx").graph.initializer]
    assert sizes == [4 * 16 * 256] * 4
    x = RANDOM.normal(size=(5, 256)).astype(np.float32)
    np.testing.assert_allclose(run(tmp_path / "out.onnx", x), run(source, x), atol=2e-5)


def test_too_much_lost_is_rolled_back(tmp_path: Path, context: PassContext) -> None:
    weight = RANDOM.normal(size=(256, 256)).astype(np.float32)
    source = Artifact.of(graph(tmp_path / "a.onnx", weight), "a", "reduced")
    feeds = [{"x": RANDOM.normal(size=(4, 256)).astype(np.float32)}]
    step = LowRank(energy=0.3, tokens=128)
    made = rewrite(source, [("low_rank", step)], context, feeds, tmp_path, lambda *_: None)
    assert made.path == source.path
    assert "rolled back" in made.history[-1].why


def test_rank_of_edges() -> None:
    assert _rank(np.array([0.0, 0.0], np.float32), 0.9) == (1, 1.0)
    assert _rank(np.array([2.0, 1.0], np.float32), 0.8) == (1, 0.8)
    assert _rank(np.array([2.0, 1.0], np.float32), 1.0)[0] == 2
