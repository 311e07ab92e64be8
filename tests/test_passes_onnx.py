"""ONNX passes: each where it fires, and where it leaves a clean graph alone."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_graphs import clean, kinds, outputs, save

from edgeredux.artifact import Artifact
from edgeredux.errors import ArtifactError, DataError
from edgeredux.passes.onnx.clamp_mask import ClampMask
from edgeredux.passes.onnx.dead_structure import DeadStructure
from edgeredux.passes.onnx.fix_shapes import FixShapes
from edgeredux.passes.onnx.fold import Fold
from edgeredux.passes.onnx.fuse import Fuse
from edgeredux.passes.onnx.gelu import Gelu
from edgeredux.passes.onnx.int8_dynamic import Int8Dynamic
from edgeredux.passes.onnx.qdq_static import QdqStatic
from edgeredux.rewrite import malformed, rewrite
from edgeredux.seams import PassContext

RNG = np.random.default_rng(7)
Array = np.ndarray[Any, Any]


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    (tmp_path / "scratch").mkdir()
    return PassContext([], tmp_path / "log", tmp_path / "scratch")


def embed(path: Path) -> tuple[Path, Array, Array]:
    table, w = RNG.normal(size=(100, 64)).astype(np.float32), RNG.normal(size=(64, 32)).astype(np.float32)
    table[3] *= 100  # one row that would set the step of a table-wide scale
    table[5] = 0
    w[RNG.random(w.shape) < 0.5] = 0
    nodes = [helper.make_node("Gather", ["table", "ids"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"])]
    ids, y = (TensorProto.INT64, ["b", "s"]), (TensorProto.FLOAT, ["b", "s", 32])
    return save(path, nodes, {"ids": ids}, {"y": y}, {"table": table, "w": w}), table, w


def test_fold_computes_constants_and_merges(tmp_path: Path, context: PassContext) -> None:
    w = RNG.normal(size=(4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"]),
        helper.make_node("MatMul", ["x", "wt"], ["a"]),
        helper.make_node("MatMul", ["x", "wt"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Identity", ["s"], ["y"]),
        helper.make_node("Relu", ["x"], ["unread"]),
    ]
    shape = (TensorProto.FLOAT, ["n", 4])
    source = save(tmp_path / "m.onnx", nodes, {"x": shape}, {"y": shape}, {"w": w})
    change = Fold().run(source, tmp_path / "out.onnx", context)
    assert change.changed
    assert kinds(tmp_path / "out.onnx") == {"MatMul": 1, "Add": 1}
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(outputs(tmp_path / "out.onnx", x=x)[0], 2 * x @ w.T, rtol=1e-5)


def test_int8_dynamic_keeps_zeros_and_rows(tmp_path: Path, context: PassContext) -> None:
    source, table, w = embed(tmp_path / "m.onnx")
    change = Int8Dynamic().run(source, tmp_path / "out.onnx", context)
    assert change.changed
    assert (change.details["matmuls"], change.details["tables"]) == (1, 1)
    assert change.details["zeros"]["before"] == (w == 0).sum() + (table == 0).sum()
    weights = {item.name: numpy_helper.to_array(item) for item in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert weights["w_quantized"].dtype == np.int8
    assert not weights["w_quantized"][w == 0].any()
    assert not weights["w_zero_point"].any()
    # Symmetric quantisation by hand: scale max|w| / 127 by row; half a step is the largest error.
    rows = weights["table_row_int8"] * weights["table_row_scale"]
    assert (np.abs(rows - table) <= np.abs(table).max(axis=1, keepdims=True) / 127 * 0.5001).all()
    ids = np.array([[1, 2, 5], [7, 8, 9]])
    np.testing.assert_allclose(outputs(tmp_path / "out.onnx", ids=ids)[0], table[ids] @ w, atol=0.5)
    assert (tmp_path / "out.onnx").stat().st_size < 0.4 * source.stat().st_size


def test_int8_dynamic_leaves_a_tied_table_and_excluded_nodes(tmp_path: Path, context: PassContext) -> None:
    table = RNG.normal(size=(100, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="rows"),
        helper.make_node("Transpose", ["table"], ["t"], name="turn"),
        helper.make_node("MatMul", ["e", "t"], ["y"], name="head"),
    ]
    kind = {"ids": (TensorProto.INT64, ["b"])}, {"y": (TensorProto.FLOAT, ["b", 100])}
    source = save(tmp_path / "m.onnx", nodes, *kind, {"table": table})
    change = Int8Dynamic(exclude=("head",)).run(source, tmp_path / "out.onnx", context)
    assert not change.changed
    assert "declined" in change.why
    assert "exclude names 'nothing'" in Int8Dynamic(exclude=("nothing",)).run(source, tmp_path / "o", context).why


STEPS = [
    *(Fold(), Fuse(), DeadStructure(), FixShapes(shapes={"batch": 1})),
    *(ClampMask(), Int8Dynamic(), QdqStatic()),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_a_clean_graph_is_left_alone(tmp_path: Path, context: PassContext, step: Any) -> None:
    change = step.run(clean(tmp_path / "m.onnx"), tmp_path / "out.onnx", context)
    assert not change.changed
    assert change.why.startswith("declined: ")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
@pytest.mark.parametrize("damage", ["empty", "junk", "cut", "no_weights"])
def test_a_damaged_file_is_one_line(tmp_path: Path, context: PassContext, step: Any, damage: str) -> None:
    source, _, _ = embed(tmp_path / "m.onnx")
    if damage == "no_weights":
        onnx.save(onnx.load(source), source, save_as_external_data=True, location="w.data", size_threshold=0)
        (tmp_path / "w.data").unlink()
    else:
        data = source.read_bytes()
        source.write_bytes({"empty": b"", "junk": b"\xff" * 500, "cut": data[: len(data) // 2]}[damage])
    with pytest.raises(ArtifactError) as caught:
        step.run(source, tmp_path / "out.onnx", context)
    assert "\n" not in str(caught.value)
    assert "m.onnx" in str(caught.value)


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    source, _, _ = embed(tmp_path / "m.onnx")
    script = (
        "import sys, pathlib; from edgeredux.seams import PassContext\n"
        "from edgeredux.passes.onnx.int8_dynamic import Int8Dynamic\n"
        "source, out, scratch = map(pathlib.Path, sys.argv[1:])\n"
        "Int8Dynamic().run(source, out, PassContext([], scratch / 'log', scratch))\n"
    )
    hashes = set()
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.onnx"
        command = [sys.executable, "-c", script, str(source), str(out), str(tmp_path)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        hashes.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(hashes) == 1


ERF_GELU = [  # x * 0.5 * (1 + erf(x / sqrt 2)), as exporters write it below opset 20
    helper.make_node("Div", ["h", "root"], ["g0"]),
    helper.make_node("Erf", ["g0"], ["g1"]),
    helper.make_node("Add", ["g1", "one"], ["g2"]),
    helper.make_node("Mul", ["h", "g2"], ["g3"]),
    helper.make_node("Mul", ["g3", "half"], ["g"]),
]


def mlp(path: Path, w: Array, v: Array, *, tap: bool = False) -> Path:
    b, c = RNG.normal(size=w.shape[1]).astype(np.float32), RNG.normal(size=v.shape[1]).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["h"]),
        *ERF_GELU,
        helper.make_node("MatMul", ["g", "v"], ["n"]),
        helper.make_node("Add", ["c", "n"], ["y"]),
    ]
    kinds_of = {"y": (TensorProto.FLOAT, ["n", v.shape[1]])}
    if tap:
        kinds_of["h"] = (TensorProto.FLOAT, ["n", w.shape[1]])
    scalars = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    weights = {"w": w, "v": v, "b": b, "c": c, **{name: np.array(value) for name, value in scalars.items()}}
    return save(path, nodes, {"x": (TensorProto.FLOAT, ["n", w.shape[0]])}, kinds_of, weights)


def dead_mlp(path: Path, **more: bool) -> Path:
    w, v = RNG.normal(size=(6, 10)).astype(np.float32), RNG.normal(size=(10, 5)).astype(np.float32)
    w[:, [2, 7]] = 0  # constant: Gelu(b) goes into the next bias
    v[[3, 7], :] = 0  # unread
    return mlp(path, w, v, **more)


def test_dead_structure_cuts_constant_and_unread(tmp_path: Path, context: PassContext) -> None:
    source, out = dead_mlp(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    change = DeadStructure().run(source, out, context)
    assert change.changed
    assert sum(change.details["cut"].values()) == 3
    sizes = sorted(tuple(item.dims) for item in onnx.load(out).graph.initializer if item.dims)
    assert sizes == [(5,), (6, 7), (7,), (7, 5)]
    onnx.checker.check_model(str(out), full_check=True)
    x = RNG.normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_allclose(outputs(out, x=x)[0], outputs(source, x=x)[0], atol=1e-5)


def test_dead_structure_keeps_what_somebody_sees(tmp_path: Path, context: PassContext) -> None:
    source = dead_mlp(tmp_path / "m.onnx", tap=True)
    assert not DeadStructure().run(source, tmp_path / "out.onnx", context).changed
    w, v = np.ones((6, 10), np.float32), np.ones((10, 5), np.float32)
    assert not DeadStructure().run(mlp(source, w, v), tmp_path / "out.onnx", context).changed


@pytest.mark.parametrize("pads", [0, 1])
def test_dead_structure_of_convolutions(tmp_path: Path, context: PassContext, pads: int) -> None:
    w, v = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32), RNG.normal(size=(2, 4, 3, 3)).astype(np.float32)
    b = np.array([1.0, 2.0, -3.0, 0.5], np.float32)
    w[[1, 2]] = 0  # Relu(2) is 2 in the middle and padding's 0 at the border; Relu(-3) is 0 everywhere
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["m"], pads=[1] * 4),
        helper.make_node("Relu", ["m"], ["h"]),
        helper.make_node("Conv", ["h", "v"], ["y"], pads=[pads] * 4),
    ]
    size = 8 if pads else 6
    kind = {"x": (TensorProto.FLOAT, [1, 3, 8, 8])}, {"y": (TensorProto.FLOAT, [1, 2, size, size])}
    source, out = save(tmp_path / "m.onnx", nodes, *kind, {"w": w, "b": b, "v": v}), tmp_path / "out.onnx"
    change = DeadStructure().run(source, out, context)
    assert sum(change.details["cut"].values()) == (1 if pads else 2)
    x = RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(outputs(out, x=x)[0], outputs(source, x=x)[0], atol=1e-4)


def test_dead_structure_of_gemm_without_bias_and_a_shared_weight(tmp_path: Path, context: PassContext) -> None:
    w, v = RNG.normal(size=(8, 6)).astype(np.float32), RNG.normal(size=(8, 5)).astype(np.float32)
    w[4] = 0
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["m"], transB=1),
        helper.make_node("Sigmoid", ["m"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
        helper.make_node("MatMul", ["z", "v"], ["y2"]),
    ]
    kind = (
        {"x": (TensorProto.FLOAT, ["n", 6]), "z": (TensorProto.FLOAT, ["n", 8])},
        {"y": (TensorProto.FLOAT, ["n", 5]), "y2": (TensorProto.FLOAT, ["n", 5])},
    )
    source, out = save(tmp_path / "m.onnx", nodes, *kind, {"w": w, "v": v, "b": np.ones(8, np.float32)}), tmp_path / "o"
    assert DeadStructure().run(source, out.with_suffix(".onnx"), context).changed
    feed = {"x": RNG.normal(size=(4, 6)).astype(np.float32), "z": RNG.normal(size=(4, 8)).astype(np.float32)}
    for found, wanted in zip(outputs(out.with_suffix(".onnx"), **feed), outputs(source, **feed), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def attention(path: Path, low: float, *, guard: bool = True) -> Path:
    """Masked scores, a softmax and what torch exports around it, with dynamic axes."""
    nodes = [
        helper.make_node("Cast", ["mask"], ["keep"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["keep", "one_axis"], ["keep3"]),
        helper.make_node("Where", ["keep3", "zero", "low"], ["add"]),
        helper.make_node("Transpose", ["x"], ["xt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "xt"], ["s0"]),
        helper.make_node("Add", ["s0", "add"], ["s1"]),
        helper.make_node("Softmax", ["s1"], ["p"], axis=-1),
        helper.make_node("IsNaN", ["p"], ["bad"]),
        helper.make_node("Where", ["bad", "zero", "p"], ["q"]),
        helper.make_node("MatMul", ["q" if guard else "p", "x"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["n"]),
        helper.make_node("LayerNormalization", ["n", "gain", "shift"], ["h"]),
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Reshape", ["h", "size"], ["y"]),
    ]
    axes = ["batch", "sequence"]
    return save(
        path,
        nodes,
        {"x": (TensorProto.FLOAT, [*axes, 8]), "mask": (TensorProto.INT64, axes)},
        {"y": (TensorProto.FLOAT, [*axes, 8])},
        {
            "one_axis": np.array([1]),
            "zero": np.array(0, np.float32),
            "low": np.array(low, np.float32),
            "w": RNG.normal(size=(8, 8)).astype(np.float32),
            "gain": np.ones(8, np.float32),
            "shift": np.zeros(8, np.float32),
        },
    )


def masked(count: int = 1) -> list[dict[str, Array]]:
    mask = np.array([[1, 1, 1, 1, 0, 0]])
    return [{"x": RNG.normal(size=(1, 6, 8)).astype(np.float32), "mask": mask} for _ in range(count)]


def test_fix_shapes_folds_shape_arithmetic(tmp_path: Path, context: PassContext) -> None:
    source, out = attention(tmp_path / "m.onnx", -1e4), tmp_path / "out.onnx"
    change = FixShapes(shapes={"batch": 1, "sequence": 6}).run(source, out, context)
    assert change.changed
    assert "Shape" not in kinds(out)
    dims = [dim.dim_value for dim in onnx.load(out).graph.input[0].type.tensor_type.shape.dim]
    assert dims == [1, 6, 8]
    feed = masked()[0]
    np.testing.assert_allclose(outputs(out, **feed)[0], outputs(source, **feed)[0], atol=1e-5)
    again = FixShapes(shapes={"batch": 1}).run(out, tmp_path / "no.onnx", context)
    assert not again.changed
    assert "dynamic axes: none" in again.why


@pytest.mark.parametrize("low", [-3.4028235e38, float("-inf")])
def test_clamp_mask_raises_masks_and_drops_guards(tmp_path: Path, context: PassContext, low: float) -> None:
    source, out = attention(tmp_path / "m.onnx", low), tmp_path / "out.onnx"
    change = ClampMask().run(source, out, context)
    assert change.details["constants"] == ["low"]
    assert kinds(out)["IsNaN"] == 0
    smallest = min(float(numpy_helper.to_array(item).min()) for item in onnx.load(out).graph.initializer)
    assert smallest == -40
    feed = masked()[0]
    np.testing.assert_allclose(outputs(out, **feed)[0], outputs(source, **feed)[0], atol=1e-6)


def test_clamp_mask_leaves_other_constants(tmp_path: Path, context: PassContext) -> None:
    assert not ClampMask().run(attention(tmp_path / "m.onnx", -1e4), tmp_path / "out.onnx", context).changed
    shape = (TensorProto.FLOAT, ["n", 4])
    nodes = [helper.make_node("Max", ["x", "low"], ["y"])]
    source = save(tmp_path / "max.onnx", nodes, {"x": shape}, {"y": shape}, {"low": np.float32([-3e38])})
    change = ClampMask().run(source, tmp_path / "out.onnx", context)
    assert not change.changed
    assert "low" in change.why


def test_qdq_static_declines_what_ruins_ranges(tmp_path: Path, context: PassContext) -> None:
    dynamic = attention(tmp_path / "m.onnx", -3e38)
    assert "put fix_shapes before" in QdqStatic().run(dynamic, tmp_path / "q.onnx", context).why
    FixShapes(shapes={"batch": 1, "sequence": 6}).run(dynamic, tmp_path / "f.onnx", context)
    assert "put clamp_mask before" in QdqStatic().run(tmp_path / "f.onnx", tmp_path / "q.onnx", context).why
    ClampMask().run(tmp_path / "f.onnx", tmp_path / "c.onnx", context)
    with pytest.raises(DataError, match="no calibration feeds"):
        QdqStatic().run(tmp_path / "c.onnx", tmp_path / "q.onnx", context)


def test_qdq_static_quantises_by_channel(tmp_path: Path, context: PassContext) -> None:
    feeds = masked(8)
    context = dataclasses.replace(context, calibration=feeds)
    FixShapes(shapes={"batch": 1, "sequence": 6}).run(attention(tmp_path / "m.onnx", -40), tmp_path / "f.onnx", context)
    change = QdqStatic().run(tmp_path / "f.onnx", tmp_path / "q.onnx", context)
    assert change.changed
    assert change.details["calibrated"] == 8
    found = kinds(tmp_path / "q.onnx")
    assert found["LayerNormalization"] == 1
    assert found["QuantizeLinear"] == change.details["quantised"]
    scales = {item.name: item for item in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert list(scales["w_scale"].dims) == [8]
    a, b = (outputs(tmp_path / name, **feeds[0])[0].ravel() for name in ("f.onnx", "q.onnx"))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999
    again = QdqStatic().run(tmp_path / "q.onnx", tmp_path / "no.onnx", context)
    assert not again.changed


def test_qdq_static_takes_the_ranges_it_is_asked_for(tmp_path: Path, context: PassContext) -> None:
    feeds = masked(8)
    context = dataclasses.replace(context, calibration=feeds)
    FixShapes(shapes={"batch": 1, "sequence": 6}).run(attention(tmp_path / "m.onnx", -40), tmp_path / "f.onnx", context)
    scales = {}
    for method in ("minmax", "entropy", "percentile"):
        assert QdqStatic(method=method).run(tmp_path / "f.onnx", tmp_path / f"{method}.onnx", context).changed
        found = onnx.load(tmp_path / f"{method}.onnx").graph.initializer
        scales[method] = {i.name: float(numpy_helper.to_array(i).max()) for i in found if i.name.endswith("_scale")}
    for method in ("entropy", "percentile"):  # ONNX Runtime's own entropy search has one candidate, the whole range
        assert scales[method] != scales["minmax"]
        assert all(value <= scales["minmax"][name] * 1.001 for name, value in scales[method].items())


def test_fuse_finds_the_residual_norm(tmp_path: Path, context: PassContext) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Add", ["a", "x"], ["s"]),
        helper.make_node("LayerNormalization", ["s", "gain", "b"], ["y"]),
    ]
    shape = (TensorProto.FLOAT, ["n", "s", 8])
    w, b = RNG.normal(size=(8, 8)).astype(np.float32), np.zeros(8, np.float32)
    weights = {"w": w, "b": b, "gain": np.ones(8, np.float32)}
    source, out = save(tmp_path / "m.onnx", nodes, {"x": shape}, {"y": shape}, weights), tmp_path / "out.onnx"
    change = Fuse().run(source, out, context)
    assert change.details["fused"] == {"SkipLayerNormalization": 1}
    assert "ONNX Runtime only" in change.why
    x = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    np.testing.assert_allclose(outputs(out, x=x)[0], outputs(source, x=x)[0], atol=1e-5)


FLOAT_FILES = sorted(
    path
    for pattern in ("model-silero-vad/*.onnx", "model-yunet/*.onnx", "model-mlperf-tiny-onnx/**/*.onnx")
    for path in (Path(__file__).resolve().parents[2] / "shared" / "data").glob(pattern)
)


@pytest.mark.slow
@pytest.mark.skipif(not FLOAT_FILES, reason="the folder of shared test data is not beside this checkout")
@pytest.mark.parametrize("source", FLOAT_FILES, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_real_files_keep_their_function_or_say_why(tmp_path: Path, source: Path) -> None:
    model = onnxruntime.InferenceSession(str(source))
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    feed: dict[str, Array] = {}
    for item in model.get_inputs():
        dims = [size if isinstance(size, int) else {0: 1, 1: {"input": 576, "state": 1}.get(item.name, 3)}.get(place, 64)
                for place, size in enumerate(item.shape)]  # fmt: skip
        if item.name == "sr":
            feed["sr"] = np.array(16000, np.int64)
        else:
            feed[item.name] = RNG.random(dims).astype(types[item.type])
    (tmp_path / "scratch").mkdir()
    context = PassContext([feed], tmp_path / "log", tmp_path / "scratch")
    steps: list[tuple[str, Any]] = [
        *(("fold", Fold()), ("fuse", Fuse()), ("dead_structure", DeadStructure()), ("clamp_mask", ClampMask())),
        *(("fix_shapes", FixShapes(shapes={"batch": 1})), ("int8_dynamic", Int8Dynamic())),
    ]
    artifact = Artifact.of(source, "m", "reduced")
    answer = rewrite(artifact, steps, context, [feed], tmp_path)
    assert len(answer.history) == len(steps)
    for change in answer.history:
        print(source.stem, change.step, change.changed, change.why)
        assert change.changed or change.why.startswith(("declined: ", "rolled back: "))


@pytest.mark.parametrize("order", ["half with erf", "half with x", "half last"])
@pytest.mark.parametrize("divide", [True, False])
def test_a_written_out_gelu_becomes_one_operator(
    order: str, divide: bool, tmp_path: Path, context: PassContext
) -> None:
    first = {
        "half with erf": [("half", "grown", "m"), ("m", "x", "y")],
        "half with x": [("x", "half", "m"), ("grown", "m", "y")],
        "half last": [("x", "grown", "m"), ("m", "half", "y")],
    }[order]
    nodes = [
        helper.make_node("Div" if divide else "Mul", ["x", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["grown"]),
        *[helper.make_node("Mul", list(names[:2]), [names[2]]) for names in first],
    ]
    weights = {
        "root": np.array(2**0.5 if divide else 0.5**0.5, np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
    }
    shape = (TensorProto.FLOAT, ["n", 4])
    source = save(tmp_path / "a.onnx", nodes, {"x": shape}, {"y": shape}, weights)
    change = Gelu().run(source, tmp_path / "b.onnx", context)
    assert change.details == {"gelus": 1}
    assert kinds(tmp_path / "b.onnx") == {"Gelu": 1}
    x = RNG.normal(size=(5, 4)).astype(np.float32) * 3
    np.testing.assert_allclose(outputs(tmp_path / "b.onnx", x=x), outputs(source, x=x), atol=1e-5)


def test_what_only_looks_like_gelu_stays(tmp_path: Path, context: PassContext) -> None:
    nodes = [
        helper.make_node("Div", ["x", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["grown"]),
        helper.make_node("Mul", ["half", "grown"], ["m"]),
        helper.make_node("Mul", ["x", "m"], ["y"]),
    ]
    weights = {name: np.array(value, np.float32) for name, value in (("root", 1.5), ("one", 1), ("half", 0.5))}
    shape = (TensorProto.FLOAT, ["n", 4])
    source = save(tmp_path / "a.onnx", nodes, {"x": shape}, {"y": shape}, weights)
    assert not Gelu().run(source, tmp_path / "b.onnx", context).changed
    assert not Gelu().run(clean(tmp_path / "c.onnx"), tmp_path / "d.onnx", context).changed


def test_a_branch_that_hands_on_a_value_from_outside_keeps_its_identity(tmp_path: Path, context: PassContext) -> None:
    made = numpy_helper.from_array(np.ones((), np.float32), "one")
    branches = {
        name: helper.make_graph(
            [helper.make_node(kind, inputs, [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])],
        )
        for name, kind, inputs in (("as_is", "Identity", ["h"]), ("more", "Add", ["h", "one"]))
    }
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["h"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branches["as_is"], else_branch=branches["more"]),
        helper.make_node("Add", ["one", "one"], ["two"]),
    ]
    nodes.insert(0, nodes.pop())
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [made],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "in.onnx"
    )
    change = Fold().run(tmp_path / "in.onnx", tmp_path / "out.onnx", context)
    assert change.changed, change.why
    assert malformed(tmp_path / "in.onnx", tmp_path / "out.onnx") is None
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    for c in (True, False):
        (found,) = outputs(tmp_path / "out.onnx", x=x, c=np.array(c))
        np.testing.assert_array_equal(found, 2 * x + (0 if c else 1))


def test_reshapes_made_by_folding_fit_an_old_opset(tmp_path: Path, context: PassContext) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "one"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    arrays = {"zero": [0], "one": [1], "rest": [-1, 2]}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m", 2])],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    onnx.save(model, tmp_path / "in.onnx")
    change = FixShapes({"n": 3}).run(tmp_path / "in.onnx", tmp_path / "out.onnx", context)
    assert change.changed, change.why
    assert malformed(tmp_path / "in.onnx", tmp_path / "out.onnx") is None
