"""float16: halves the bytes, keeps the function, masks, zeros and small values; after int4 as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_graphs import clean, kinds, outputs, save

from edgeredux.artifact import Artifact
from edgeredux.errors import ArtifactError
from edgeredux.passes.onnx.files import read
from edgeredux.passes.onnx.fp16 import Fp16
from edgeredux.passes.onnx.int4_weights import Int4Weights
from edgeredux.passes.onnx.ranges import largest
from edgeredux.rewrite import rewrite
from edgeredux.seams import PassContext

Array = np.ndarray[Any, Any]
FLOAT = TensorProto.FLOAT


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    (tmp_path / "scratch").mkdir()
    return PassContext([], tmp_path / "log", tmp_path / "scratch")


def masked(path: Path, weights: dict[str, Array], low: float = -1e38) -> Path:
    """Two masks added to scores, a softmax, a layer."""
    nodes = [
        helper.make_node("Where", ["keep", "zero", "low"], ["mask"]),
        helper.make_node("Add", ["x", "mask"], ["s"]),
        helper.make_node("Add", ["s", "mask"], ["s2"]),
        helper.make_node("Softmax", ["s2"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", "w"], ["y"], name="layer"),
    ]
    scalars = {"zero": np.array(0, np.float32), "low": np.array(low, np.float32)}
    shape = (FLOAT, ["n", 64])
    return save(path, nodes, {"x": shape, "keep": (TensorProto.BOOL, ["n", 64])}, {"y": shape}, {**scalars, **weights})


def feed(rng: np.random.Generator) -> dict[str, Array]:
    keep = rng.random((5, 64)) < 0.7
    keep[:, 0] = True
    return {"x": rng.normal(size=(5, 64)).astype(np.float32), "keep": keep}


def test_fp16_halves_and_keeps_masks_zeros_and_small_values(tmp_path: Path, context: PassContext) -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 64)).astype(np.float32)
    w[rng.random(w.shape) < 0.5] = 0
    w[0, :2] = 1e-30, 1e9
    source, out = masked(tmp_path / "m.onnx", {"w": w}), tmp_path / "out.onnx"
    change = Fp16().run(source, out, context)
    assert (change.details["masks"], change.details["saturated"]) == (["low"], 1)
    assert change.details["zeros"]["before"] == change.details["zeros"]["after"] == (w == 0).sum()
    stored = {item.name: numpy_helper.to_array(item) for item in onnx.load(out).graph.initializer}
    assert stored["w"].dtype == np.float16
    np.testing.assert_array_equal(stored["w"] == 0, w == 0)
    np.testing.assert_array_equal(stored["w"][1:], w[1:].astype(np.float16))
    assert min(float(value) for name, value in stored.items() if name.startswith("low")) == -1e4
    assert kinds(out)["Cast"] == 2  # x in, y out
    w[0, :2] = 1
    masked(source, {"w": w})
    out.unlink()
    Fp16().run(source, out, context)
    given = feed(rng)
    made = outputs(out, **given)[0]
    np.testing.assert_allclose(made, outputs(source, **given)[0], atol=5e-3)  # 64 products, each to 11 bits
    given["keep"][0] = False  # nothing to attend to: two masks of -65504 would be -inf here, and the softmax NaN
    assert np.isfinite(outputs(out, **given)[0]).all()
    assert out.stat().st_size < 0.65 * source.stat().st_size


@pytest.mark.parametrize("node", [False, True], ids=["initializer", "Constant"])
def test_a_scalar_that_is_cut_is_counted(tmp_path: Path, context: PassContext, node: bool) -> None:
    top, w = np.array(1e9, np.float32), np.eye(4, dtype=np.float32)
    nodes = [helper.make_node("Constant", [], ["top"], value=numpy_helper.from_array(top))] if node else []
    nodes += [helper.make_node("Min", ["x", "top"], ["m"]), helper.make_node("MatMul", ["m", "w"], ["y"])]
    shape, weights = (FLOAT, ["n", 4]), {"w": w} if node else {"w": w, "top": top}
    source = save(tmp_path / "m.onnx", nodes, {"x": shape}, {"y": shape}, weights)
    change = Fp16().run(source, tmp_path / "out.onnx", context)
    assert change.details["saturated"] == 1
    assert "1 values beyond 65504 cut to it" in change.why


def test_fp16_without_float_inputs(tmp_path: Path, context: PassContext) -> None:
    w = np.eye(64, dtype=np.float32)
    source, out = masked(tmp_path / "m.onnx", {"w": w}), tmp_path / "out.onnx"
    assert Fp16(keep_io_types=False, exclude=("layer",), float_operators=("Softmax",)).run(source, out, context).changed
    graph = onnx.load(out).graph
    assert [item.type.tensor_type.elem_type for item in (*graph.input, *graph.output)] == [10, 9, 10]
    assert [item.data_type for item in graph.initializer if item.name == "w"] == [1]
    given = feed(np.random.default_rng(1))
    wanted = outputs(source, **given)[0]
    np.testing.assert_allclose(outputs(out, **{**given, "x": given["x"].astype(np.float16)})[0], wanted, atol=5e-3)


def test_int4_then_fp16(tmp_path: Path, context: PassContext) -> None:
    rng = np.random.default_rng(2)
    w = rng.normal(size=(64, 64)).astype(np.float32)
    source = masked(tmp_path / "m.onnx", {"w": w})
    steps = [("int4_weights", Int4Weights()), ("fp16", Fp16())]
    made = rewrite(Artifact.of(source, "m", "reduced"), steps, context, [feed(rng)], tmp_path)
    assert [(change.changed, change.details.get("rolled_back")) for change in made.history] == [(True, None)] * 2
    types = {item.name: item.data_type for item in onnx.load(made.path).graph.initializer}
    assert types["w_scales0"] == TensorProto.FLOAT16


def norm(path: Path) -> Path:
    """A root mean square written out: the squares of values above 255 are beyond float16."""
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["g"], name="gain_by"),
        helper.make_node("Mul", ["g", "g"], ["square"], name="square_of"),
        helper.make_node("ReduceMean", ["square"], ["mean"], name="mean_of", keepdims=1),
        helper.make_node("Sqrt", ["mean"], ["root"], name="root_of"),
        helper.make_node("Div", ["g", "root"], ["y"], name="divide"),
    ]
    shape = (FLOAT, ["n", 4])
    return save(path, nodes, {"x": shape}, {"y": shape}, {"gain": np.array([400, 1, 1, 1], np.float32)})


def test_what_would_overflow_stays_float32(tmp_path: Path, context: PassContext) -> None:
    source, out = norm(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    given = {"x": np.array([[1, 2, 3, 4], [2, 1, 0.5, 1]], np.float32)}
    change = Fp16().run(source, out, PassContext([given], context.log, context.scratch))
    assert change.details["largest"] == 800**2
    assert change.details["beyond"] == ["square_of", "mean_of", "root_of"]
    model = onnx.load(out)
    made = {name: node for node in model.graph.node for name in node.output}
    types = {
        item.name: item.type.tensor_type.elem_type for item in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for node in model.graph.node:
        if node.name in ("mean_of", "root_of"):  # nothing between them goes through float16
            assert types[node.input[0]] == FLOAT
            assert made[node.input[0]].op_type != "Cast"
    np.testing.assert_allclose(outputs(out, **given)[0], outputs(source, **given)[0], rtol=5e-3)
    blind = Fp16().run(source, tmp_path / "b.onnx", context)
    assert (blind.details["largest"], blind.details["beyond"]) == (None, [])


def test_a_value_without_a_finite_element_has_no_largest(tmp_path: Path, context: PassContext) -> None:
    nodes = [helper.make_node("Add", ["x", "low"], ["a"]), helper.make_node("Relu", ["x"], ["y"])]
    shape = (FLOAT, ["n", 4])
    source = save(
        tmp_path / "m.onnx", nodes, {"x": shape}, {"y": shape, "a": shape}, {"low": np.full(4, -np.inf, np.float32)}
    )
    model = read(source)
    for node in model.graph:
        node.outputs[0].dtype = ir.DataType.FLOAT
    found = largest(model, [{"x": np.array([[1, -3, 2, 0]], np.float32)}], context.scratch)
    assert found == {"y": 2.0, "x": 3.0}


def test_what_the_file_says_of_inner_types_is_not_kept(tmp_path: Path, context: PassContext) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Resize", ["r", "roi", "factors"], ["z"], name="resize"),
        helper.make_node("Mul", ["z", "w"], ["y"]),
    ]
    weights = {
        "roi": np.zeros(0, np.float32),
        "factors": np.array([1, 1, 2, 2], np.float32),
        "w": np.ones(4, np.float32),
    }
    shapes = {"x": (FLOAT, [1, 1, 2, 2])}, {"y": (FLOAT, [1, 1, 4, 4])}
    source = save(tmp_path / "m.onnx", nodes, *shapes, weights)
    model = onnx.load(source)
    model = onnx.shape_inference.infer_shapes(model)
    model.graph.value_info.append(helper.make_tensor_value_info("factors", FLOAT, [4]))
    onnx.save(model, source)
    given = {"x": np.ones((1, 1, 2, 2), np.float32)}
    made = rewrite(Artifact.of(source, "m", "reduced"), [("fp16", Fp16())], context, [given], tmp_path)
    assert made.history[0].changed, made.history[0].why


def test_a_clean_graph_and_bad_input(tmp_path: Path, context: PassContext) -> None:
    out = tmp_path / "out.onnx"
    assert "no constant" in Fp16().run(clean(tmp_path / "m.onnx"), out, context).why
    assert "which is no node" in Fp16(exclude=("no",)).run(clean(tmp_path / "m.onnx"), out, context).why
    assert "does not have" in Fp16(float_operators=("Pow",)).run(clean(tmp_path / "m.onnx"), out, context).why
    (tmp_path / "junk.onnx").write_bytes(b"\x08junk")
    with pytest.raises(ArtifactError):
        Fp16().run(tmp_path / "junk.onnx", out, context)
    assert not out.exists()
