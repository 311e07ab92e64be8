"""ONNX passes: each where it fires, and where it leaves a clean graph alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeredux.errors import ArtifactError
from edgeredux.passes.onnx.dead_channels import DeadChannels
from edgeredux.passes.onnx.fold import Fold
from edgeredux.passes.onnx.int8_dynamic import Int8Dynamic
from edgeredux.seams import PassContext

RNG = np.random.default_rng(7)
Array = np.ndarray[Any, Any]


def save(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    weights: dict[str, Array],
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def outputs(path: Path, **feed: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[Array] = onnxruntime.InferenceSession(str(path), options).run(None, feed)
    return found


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    (tmp_path / "scratch").mkdir()
    return PassContext([], tmp_path / "log", tmp_path / "scratch")


def clean(path: Path) -> Path:
    """A graph that no pass can better: one activation."""
    shape = (TensorProto.FLOAT, ["n", 4])
    return save(path, [helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, {"y": shape}, {})


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
    assert change.details["zeros_kept"] == (w == 0).sum() + (table == 0).sum()
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


@pytest.mark.parametrize("step", [Fold(), Int8Dynamic(), DeadChannels()], ids=lambda step: type(step).__name__)
def test_a_clean_graph_is_left_alone(tmp_path: Path, context: PassContext, step: Any) -> None:
    change = step.run(clean(tmp_path / "m.onnx"), tmp_path / "out.onnx", context)
    assert not change.changed
    assert change.why.startswith("declined: ")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("step", [Fold(), Int8Dynamic(), DeadChannels()], ids=lambda step: type(step).__name__)
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


def test_dead_channels_cuts_constant_and_unread(tmp_path: Path, context: PassContext) -> None:
    source, out = dead_mlp(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    change = DeadChannels().run(source, out, context)
    assert change.changed
    assert sum(change.details["cut"].values()) == 3
    sizes = sorted(tuple(item.dims) for item in onnx.load(out).graph.initializer if item.dims)
    assert sizes == [(5,), (6, 7), (7,), (7, 5)]
    onnx.checker.check_model(str(out), full_check=True)
    x = RNG.normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_allclose(outputs(out, x=x)[0], outputs(source, x=x)[0], atol=1e-5)


def test_dead_channels_keeps_what_somebody_sees(tmp_path: Path, context: PassContext) -> None:
    source = dead_mlp(tmp_path / "m.onnx", tap=True)
    assert not DeadChannels().run(source, tmp_path / "out.onnx", context).changed
    w, v = np.ones((6, 10), np.float32), np.ones((10, 5), np.float32)
    assert not DeadChannels().run(mlp(source, w, v), tmp_path / "out.onnx", context).changed


@pytest.mark.parametrize("pads", [0, 1])
def test_dead_channels_of_convolutions(tmp_path: Path, context: PassContext, pads: int) -> None:
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
    change = DeadChannels().run(source, out, context)
    assert sum(change.details["cut"].values()) == (1 if pads else 2)
    x = RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(outputs(out, x=x)[0], outputs(source, x=x)[0], atol=1e-4)


def test_dead_channels_of_gemm_without_bias_and_a_shared_weight(tmp_path: Path, context: PassContext) -> None:
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
    assert DeadChannels().run(source, out.with_suffix(".onnx"), context).changed
    feed = {"x": RNG.normal(size=(4, 6)).astype(np.float32), "z": RNG.normal(size=(4, 8)).astype(np.float32)}
    for found, wanted in zip(outputs(out.with_suffix(".onnx"), **feed), outputs(source, **feed), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
