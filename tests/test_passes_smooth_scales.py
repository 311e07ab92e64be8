"""SmoothQuant's scales: the paper's own example, every form of normalisation, what else reads the value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_graphs import clean, kinds, outputs, save

from edgeredux.errors import ArtifactError, DataError
from edgeredux.passes.onnx.int8_dynamic import Int8Dynamic
from edgeredux.passes.onnx.smooth_scales import SmoothScales, scales
from edgeredux.seams import PassContext

Array = np.ndarray[Any, Any]
FLOAT = TensorProto.FLOAT


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    (tmp_path / "scratch").mkdir()
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(size=(2, 5, 16)).astype(np.float32)} for _ in range(3)]
    return PassContext(feeds, tmp_path / "log", tmp_path / "scratch")


def test_the_papers_example() -> None:
    # arXiv 2211.10438, figure 5, alpha = 0.5
    x = np.array([[1, -16, 2, 6], [-2, 8, -1, -9]], np.float32)
    w = np.array([[2, 1, -2], [1, -1, -1], [2, -1, -2], [-1, -1, 1]], np.float32)
    s = scales(np.abs(x).max(0), np.abs(w).max(1), 0.5)
    np.testing.assert_allclose(s, [1, 4, 1, 3])
    np.testing.assert_allclose(x / s, [[1, -4, 2, 2], [-2, 2, -1, -3]])
    np.testing.assert_allclose(w * s[:, None], [[2, 1, -2], [4, -4, -4], [2, -1, -2], [-3, -3, 3]])
    np.testing.assert_allclose(scales(np.array([4.0, 0, 9]), np.array([1.0, 5, 0]), 0.5), [2, 1, 1])
    np.testing.assert_allclose(scales(np.array([16.0]), np.array([2.0]), 0.75), [16**0.75 / 2**0.25])


def norm_nodes(form: str) -> tuple[list[Any], dict[str, Array]]:
    rng = np.random.default_rng(2)
    gain, shift = np.exp(rng.normal(size=16)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    gain[3] *= 40
    weights = {"gain": gain, "shift": shift}
    if form == "LayerNormalization":
        return [helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"], name="norm")], weights
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axis"], ["mean"]),
        helper.make_node("Sqrt", ["mean"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["unit"]),
    ]
    weights["axis"] = np.array([-1])
    if form == "rms written out":
        del weights["shift"]
        return [*nodes, helper.make_node("Mul", ["gain", "unit"], ["n"], name="norm")], weights
    return [
        *nodes,
        helper.make_node("Mul", ["unit", "gain"], ["g"]),
        helper.make_node("Add", ["g", "shift"], ["n"]),
    ], weights


def block(path: Path, form: str, *, residual: bool = False) -> Path:
    rng = np.random.default_rng(3)
    nodes, weights = norm_nodes(form)
    w, v = (rng.normal(size=(16, 16)).astype(np.float32) for _ in range(2))
    w[rng.random(w.shape) < 0.5] = 0
    nodes += [
        helper.make_node("MatMul", ["n", "w"], ["a"], name="a"),
        helper.make_node("MatMul", ["n", "w"], ["b"], name="b"),
        helper.make_node("MatMul", ["n", "v"], ["c"], name="c"),
        helper.make_node("Sum", ["a", "b", "c", "n"] if residual else ["a", "b", "c"], ["y"]),
    ]
    shape = (FLOAT, ["batch", "sequence", 16])
    return save(path, nodes, {"x": shape}, {"y": shape}, {**weights, "w": w, "v": v})


@pytest.mark.parametrize("form", ["LayerNormalization", "rms written out", "norm written out"])
@pytest.mark.parametrize("residual", [False, True])
def test_the_function_stays_and_channels_come_together(
    tmp_path: Path, context: PassContext, form: str, residual: bool
) -> None:
    source, out = block(tmp_path / "m.onnx", form, residual=residual), tmp_path / "out.onnx"
    change = SmoothScales().run(source, out, context)
    told = change.details["norms"]["n"]
    assert (told["readers"], told["others"]) == (["a", "b", "c"], int(residual))
    assert told["spread_after"] < 0.6 * told["spread_before"]  # the root of it, where weights are even
    onnx.checker.check_model(str(out), full_check=True)
    x = context.calibration[0]["x"]
    np.testing.assert_allclose(outputs(out, x=x)[0], outputs(source, x=x)[0], rtol=1e-4, atol=1e-4)
    before = {item.name: numpy_helper.to_array(item) for item in onnx.load(source).graph.initializer}
    after = {item.name: numpy_helper.to_array(item) for item in onnx.load(out).graph.initializer}
    assert sum(item.ndim == 2 for item in after.values()) == 2  # a and b share one weight still
    np.testing.assert_array_equal(after["w_smooth0"] == 0, before["w"] == 0)
    both = np.maximum(np.abs(before["w"]).max(1), np.abs(before["v"]).max(1))  # the readers share s
    top = np.maximum.reduce([np.abs(value(source, feed["x"])).max((0, 1)) for feed in context.calibration])
    s = np.sqrt(top / both)
    np.testing.assert_allclose(after["v_smooth0"], before["v"] * s[:, None], rtol=1e-4)
    assert kinds(out)["Mul"] == kinds(source)["Mul"] + int(residual)


def value(path: Path, x: Array) -> Array:
    """The normalised value n itself."""
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("n", FLOAT, None))
    seen = path.with_name("seen.onnx")
    onnx.save(model, seen)
    return outputs(seen, x=x)[0]


def test_int8_gains_by_it(tmp_path: Path, context: PassContext) -> None:
    source = block(tmp_path / "m.onnx", "LayerNormalization")
    SmoothScales().run(source, tmp_path / "s.onnx", context)
    x = context.calibration[0]["x"]
    errors = []
    for name in ("m", "s"):
        Int8Dynamic(per_channel=True).run(tmp_path / f"{name}.onnx", tmp_path / f"{name}8.onnx", context)
        errors.append(float(np.abs(outputs(tmp_path / f"{name}8.onnx", x=x)[0] - outputs(source, x=x)[0]).mean()))
    assert errors[1] < 0.8 * errors[0]


def test_padding_sets_no_scale(tmp_path: Path, context: PassContext) -> None:
    source = block(tmp_path / "m.onnx", "rms written out")
    feed = dict(context.calibration[0])
    loud = feed["x"].copy()
    loud[:, 3:] *= np.linspace(1, 100, 16, dtype=np.float32)
    mask = np.array([[1, 1, 1, 0, 0]] * 2)
    for name, x in (("a", feed["x"]), ("b", loud)):
        masked = PassContext([{"x": x, "attention_mask": mask}], context.log, context.scratch)
        SmoothScales().run(source, tmp_path / f"{name}.onnx", masked)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_square_weight_that_is_read_both_ways(tmp_path: Path, context: PassContext) -> None:
    rng = np.random.default_rng(4)
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["a"]),
        helper.make_node("Gemm", ["n", "w"], ["b"], transB=1),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    weights = {"gain": np.linspace(0.1, 9, 16, dtype=np.float32), "w": rng.normal(size=(16, 16)).astype(np.float32)}
    source = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 16])}, {"y": (FLOAT, ["n", 16])}, weights)
    x = rng.normal(size=(6, 16)).astype(np.float32)
    assert (
        SmoothScales().run(source, tmp_path / "o.onnx", PassContext([{"x": x}], context.log, context.scratch)).changed
    )
    np.testing.assert_allclose(outputs(tmp_path / "o.onnx", x=x)[0], outputs(source, x=x)[0], rtol=1e-4, atol=1e-4)


def test_a_spread_over_silent_channels_is_no_number(tmp_path: Path, context: PassContext) -> None:
    source = block(tmp_path / "m.onnx", "rms written out")
    silent = {**context.calibration[0], "x": np.zeros_like(context.calibration[0]["x"])}
    silent["x"][..., 0] = 1
    change = SmoothScales().run(source, tmp_path / "out.onnx", PassContext([silent], context.log, context.scratch))
    assert change.details["norms"]["n"]["spread_before"] is None
    assert "spread" not in change.why


def test_what_it_leaves_alone(tmp_path: Path, context: PassContext) -> None:
    out = tmp_path / "out.onnx"
    residual = block(tmp_path / "m.onnx", "LayerNormalization", residual=True)
    assert "declined" in SmoothScales(others=False).run(residual, out, context).why
    assert "declined" in SmoothScales().run(clean(tmp_path / "c.onnx"), out, context).why
    with pytest.raises(DataError, match="no calibration feeds"):
        SmoothScales().run(residual, out, PassContext([], context.log, context.scratch))
    with pytest.raises(DataError, match="do not run"):
        SmoothScales().run(residual, out, PassContext([{"x": np.ones((2, 2))}], context.log, context.scratch))
    (tmp_path / "junk.onnx").write_bytes(b"\x08junk")
    with pytest.raises(ArtifactError):
        SmoothScales().run(tmp_path / "junk.onnx", out, context)
    assert not out.exists()
