"""Sparse initializers beyond their break-even; 2:4 weights checked, marked, warned of; PyTorch's way to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Cli
from onnx import TensorProto, helper, numpy_helper
from tiny_graphs import clean, outputs, save

from edgeredux.artifact import Artifact
from edgeredux.errors import ArtifactError
from edgeredux.passes.onnx.fold import Fold
from edgeredux.passes.onnx.int4_weights import Int4Weights
from edgeredux.passes.onnx.int8_dynamic import Int8Dynamic
from edgeredux.passes.onnx.int8_static import Int8Static
from edgeredux.passes.onnx.sparse_initializer import SparseInitializer, break_even
from edgeredux.passes.onnx.two_four import KEY, TwoFour
from edgeredux.readings import Missing
from edgeredux.rewrite import rewrite
from edgeredux.seams import PassContext
from edgeredux.sparsity import semi_structured

Array = np.ndarray[Any, Any]
FLOAT = TensorProto.FLOAT


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    (tmp_path / "scratch").mkdir()
    return PassContext([], tmp_path / "log", tmp_path / "scratch")


def exactly(shape: tuple[int, ...], zeros: int, kind: str) -> Array:
    """A weight with so many zeros of 1000."""
    w = np.arange(1, 1001).astype(np.float32)
    w[:zeros] = 0
    w = np.random.default_rng(0).permutation(w).reshape(shape)
    return (w % 100 + (w > 0)).astype(kind) if kind == "int8" else w.astype(kind)


@pytest.mark.parametrize(("kind", "limit"), [("float32", 667), ("float16", 800), ("int8", 889)])
def test_the_break_even_is_where_bytes_are_equal(tmp_path: Path, context: PassContext, kind: str, limit: int) -> None:
    item = np.dtype(kind).itemsize
    assert break_even(item) == pytest.approx(limit / 1000, abs=1e-3)
    for zeros, pays in ((limit - 1, False), (limit + 2, True)):
        w = exactly((25, 40), zeros, kind)
        nodes = [helper.make_node("Cast", ["w"], ["f"], to=FLOAT), helper.make_node("MatMul", ["x", "f"], ["y"])]
        source = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 25])}, {"y": (FLOAT, ["n", 40])}, {"w": w})
        feed = {"x": np.random.default_rng(1).normal(size=(3, 25)).astype(np.float32)}
        steps = [("sparse_initializer", SparseInitializer(least=100))]
        made = rewrite(Artifact.of(source, "m", "reduced"), steps, context, [feed], tmp_path)
        change = made.history[0]
        assert change.changed is pays, change.why
        if pays:
            assert change.details["parity"]["max_abs"] == 0
            stored = onnx.load(made.path).graph
            assert not stored.initializer
            values, indices = (
                numpy_helper.to_array(t)
                for t in (stored.sparse_initializer[0].values, stored.sparse_initializer[0].indices)
            )
            again = np.zeros(1000, kind)
            again[indices] = values
            np.testing.assert_array_equal(again.reshape(25, 40), w)
            assert change.details["weights"]["w"]["bytes_after"] == len(values) * (item + 8)
        else:
            assert change.why.startswith("declined: no weight is beyond its break-even; the nearest, w, has ")
            assert f"{break_even(item):.1%}" in change.why


def test_minus_zero_stays_minus_zero(tmp_path: Path, context: PassContext) -> None:
    w = np.zeros((40, 40), np.float32)
    w[0, :5] = -0.0
    node = [helper.make_node("Div", ["x", "w"], ["y"])]
    source = save(tmp_path / "m.onnx", node, {"x": (FLOAT, [40, 40])}, {"y": (FLOAT, [40, 40])}, {"w": w})
    assert SparseInitializer().run(source, tmp_path / "out.onnx", context).details["weights"]["w"]["bytes_after"] == 60
    x = np.ones((40, 40), np.float32)
    np.testing.assert_array_equal(outputs(tmp_path / "out.onnx", x=x)[0], outputs(source, x=x)[0])


def test_no_pass_reads_a_sparse_file_by_halves(tmp_path: Path, context: PassContext) -> None:
    w = np.zeros((40, 40), np.float32)
    node = [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]
    source = save(tmp_path / "m.onnx", node, {"x": (FLOAT, ["n", 40])}, {"y": (FLOAT, ["n", 40])}, {"w": w})
    SparseInitializer().run(source, tmp_path / "s.onnx", context)
    for step in (Fold(), Int8Dynamic(), Int4Weights(), TwoFour()):
        with pytest.raises(ArtifactError, match="comes last"):
            step.run(tmp_path / "s.onnx", tmp_path / "out.onnx", context)
    assert "no weight has 1024" in SparseInitializer().run(clean(tmp_path / "c.onnx"), tmp_path / "o.onnx", context).why
    old = onnx.load(source)
    old.ir_version = 4
    old.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [40, 40]))
    onnx.save(old, tmp_path / "old.onnx")
    assert "IR version 4" in SparseInitializer().run(tmp_path / "old.onnx", tmp_path / "o.onnx", context).why
    (tmp_path / "junk.onnx").write_bytes(b"\xff" * 90)
    with pytest.raises(ArtifactError):
        SparseInitializer().run(tmp_path / "junk.onnx", tmp_path / "o.onnx", context)


def two_four(rng: np.random.Generator, outputs: int, inputs: int) -> Array:
    """[outputs, inputs], the two smallest of every four neighbouring inputs gone."""
    w = rng.normal(size=(outputs, inputs // 4, 4)).astype(np.float32)
    np.put_along_axis(w, np.argsort(np.abs(w), axis=-1)[..., :2], 0, axis=-1)
    return w.reshape(outputs, inputs)


def network(path: Path, rng: np.random.Generator, *, broken: int = 0) -> Path:
    """MatMul, Gemm of both orders, a dense MatMul."""
    a, b, c = two_four(rng, 64, 32), two_four(rng, 64, 64), two_four(rng, 48, 64)
    a[:broken, :4] = 1, 1, 1, 0
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="first"),
        helper.make_node("Gemm", ["p", "b"], ["q"], name="second", transB=1),
        helper.make_node("Gemm", ["q", "c"], ["r"], name="third"),
        helper.make_node("MatMul", ["r", "d"], ["y"], name="dense"),
    ]
    weights = {"a": a.T.copy(), "b": b, "c": c.T.copy(), "d": rng.normal(size=(48, 16)).astype(np.float32)}
    return save(path, nodes, {"x": (FLOAT, ["n", 32])}, {"y": (FLOAT, ["n", 16])}, weights)


def test_whole_patterns_are_counted_and_marked(tmp_path: Path, context: PassContext, rng: np.random.Generator) -> None:
    source, out = network(tmp_path / "m.onnx", rng), tmp_path / "out.onnx"
    change = TwoFour().run(source, out, context)
    layers = {name: (said["axis"], said["groups"]) for name, said in change.details["layers"].items()}
    assert layers == {"first": (0, 64 * 8), "second": (1, 64 * 16), "third": (0, 48 * 16)}
    assert list(change.details["dense"]) == ["dense"]
    assert change.details["dense"]["dense"]["groups"] == 16 * 12
    assert (change.details["broken"], change.details["warnings"]) == ({}, [])
    model = onnx.load(out)
    (entry,) = [item for item in model.metadata_props if item.key == KEY]
    assert json.loads(entry.value) == change.details["layers"]
    marks = {node.name: item.value for node in model.graph.node for item in node.metadata_props if item.key == KEY}
    assert sorted(marks) == ["first", "second", "third"]
    x = rng.normal(size=(3, 32)).astype(np.float32)
    np.testing.assert_array_equal(outputs(out, x=x)[0], outputs(source, x=x)[0])


def test_a_broken_pattern_is_refused(tmp_path: Path, context: PassContext, rng: np.random.Generator) -> None:
    change = TwoFour().run(network(tmp_path / "m.onnx", rng, broken=2), tmp_path / "out.onnx", context)
    assert not change.changed
    assert "first: 2 of 512 groups keep 3 or 4" in change.why
    assert change.details["broken"] == {"first": {"groups": 512, "whole": 510}}
    whole = network(tmp_path / "w.onnx", rng)
    assert "dense is required to be 2:4" in TwoFour(require=("dense",)).run(whole, tmp_path / "o.onnx", context).why
    assert "which is no node" in TwoFour(require=("no",)).run(whole, tmp_path / "o.onnx", context).why
    assert TwoFour(require=("first", "third")).run(whole, tmp_path / "o.onnx", context).changed


def test_what_has_no_groups_is_not_counted_as_none(tmp_path: Path, context: PassContext) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="odd"),
    ]
    weights = {"w": np.zeros((6, 8), np.float32)}
    source = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 6])}, {"y": (FLOAT, ["n", 8])}, weights)
    for require, said in (
        (("relu",), "no constant weight"),
        (("odd",), "odd is required to be 2:4, and its inputs are no multiple of four"),
        ((), "no weight has a multiple of four inputs"),
    ):
        assert said in TwoFour(require=require).run(source, tmp_path / "o.onnx", context).why


def test_many_scattered_zeros_are_no_broken_pattern(
    tmp_path: Path, context: PassContext, rng: np.random.Generator
) -> None:
    w = rng.normal(size=(400, 64)).astype(np.float32)
    w[rng.random(w.shape) < 0.83] = 0  # nearly every group keeps two or fewer, by chance
    node = [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]
    source = save(tmp_path / "m.onnx", node, {"x": (FLOAT, ["n", 400])}, {"y": (FLOAT, ["n", 64])}, {"w": w})
    change = TwoFour().run(source, tmp_path / "out.onnx", context)
    assert "no weight is 2:4" in change.why
    assert change.details["broken"] == {}


QUANTISED = [
    (Int8Static(cosine=0), "Q/DQ pair"),
    (Int8Dynamic(), "quantises while running"),
    (Int4Weights(least=0), "operator of ONNX Runtime"),
]


@pytest.mark.parametrize(("step", "warning"), QUANTISED, ids=["static", "dynamic", "int4"])
def test_the_pattern_is_whole_after_quantisation(
    tmp_path: Path, context: PassContext, rng: np.random.Generator, step: Any, warning: str
) -> None:
    source, feeds = network(tmp_path / "m.onnx", rng), [{"x": rng.normal(size=(8, 32)).astype(np.float32)}] * 8
    context = PassContext(feeds, context.log, context.scratch)
    assert step.run(source, tmp_path / "q.onnx", context).changed
    change = TwoFour().run(tmp_path / "q.onnx", tmp_path / "out.onnx", context)
    assert change.changed, change.why
    assert len(change.details["layers"]) == 3
    assert [said["groups"] for said in change.details["layers"].values()] == [512, 1024, 768]
    assert len(change.details["warnings"]) >= 3
    assert all(warning in line for line in change.details["warnings"])
    floats = TwoFour().run(source, tmp_path / "f.onnx", context).details["layers"]
    now = change.details["layers"].values()
    assert sum(said["zeros"] for said in now) >= sum(said["zeros"] for said in floats.values()) > 4000


def test_what_tensorrt_would_lose_is_named(tmp_path: Path, context: PassContext, rng: np.random.Generator) -> None:
    codes = np.clip(np.rint(two_four(rng, 64, 32) * 40), -127, 127).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale", "point"], ["w"]),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["y"], name="layer"),
    ]
    kinds_of = {"x": (FLOAT, ["n", 32])}, {"y": (FLOAT, ["n", 64])}
    weights = {
        "codes": codes,
        "scale": np.float32(0.02) * np.ones(()).astype(np.float32),
        "point": np.array(0, np.int8),
    }
    source = save(tmp_path / "m.onnx", nodes, *kinds_of, weights)
    said = TwoFour().run(source, tmp_path / "out.onnx", context).details
    assert said["layers"]["layer"]["axis"] == 0
    assert any("Transpose between" in line for line in said["warnings"])
    weights |= {"codes": codes + np.int8(3), "point": np.array(3, np.int8)}
    source = save(tmp_path / "p.onnx", nodes, *kinds_of, {**weights, "codes": np.clip(codes, -100, 100) + np.int8(3)})
    said = TwoFour().run(source, tmp_path / "out.onnx", context).details
    assert any("zero point is not 0" in line for line in said["warnings"])


def test_convolutions_are_grouped_along_channels(
    tmp_path: Path, context: PassContext, rng: np.random.Generator
) -> None:
    along = np.moveaxis(two_four(rng, 8 * 9, 16).reshape(8, 3, 3, 16), -1, 1)  # [outputs, inputs, 3, 3]
    flat = two_four(rng, 8, 16 * 9).reshape(8, 16, 3, 3)  # 2:4 along kernel and channels as they lie in memory
    for name, w, whole in (("along", along, True), ("flat", flat, False)):
        node = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
        shapes = {"x": (FLOAT, [1, 16, 8, 8])}, {"y": (FLOAT, [1, 8, 6, 6])}
        source = save(tmp_path / f"{name}.onnx", node, *shapes, {"w": np.ascontiguousarray(w)})
        assert TwoFour().run(source, tmp_path / f"{name}-out.onnx", context).changed is whole


def test_a_clean_graph_and_bad_input(tmp_path: Path, context: PassContext) -> None:
    assert "no operator has" in TwoFour().run(clean(tmp_path / "m.onnx"), tmp_path / "o.onnx", context).why
    (tmp_path / "junk.onnx").write_bytes(b"\xff" * 90)
    with pytest.raises(ArtifactError):
        TwoFour().run(tmp_path / "junk.onnx", tmp_path / "o.onnx", context)
    assert not (tmp_path / "o.onnx").exists()


def test_pytorch_says_what_is_missing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 5)).half()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = semi_structured.to_semi_structured(module)
    assert isinstance(found, Missing)
    assert "finds no CUDA" in found.reason
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "this GPU has 7.5" in str(semi_structured.unavailable())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    found = semi_structured.to_semi_structured(module)
    assert isinstance(found, Missing)
    assert "not 2:4: a group of 4 keeps 4, not 2" in found.reason


def test_pytorch_hands_over_what_fits(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 4)).half()
    weight = torch.from_numpy(two_four(rng, 32, 64)).half()
    module[0].weight = torch.nn.Parameter(weight)
    monkeypatch.setattr(semi_structured, "unavailable", lambda: None)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    given: list[torch.Tensor] = []
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda w: given.append(w) or w.clone())
    found = semi_structured.to_semi_structured(module)
    assert isinstance(found, semi_structured.SemiStructured)
    assert found.converted == ("0",)
    assert list(found.left) == ["1"]
    assert torch.equal(given[0], weight)
    assert found.module is not module
    assert semi_structured.misfit(weight.float()) == "float32 has no 2:4 kernel; float16, bfloat16 and int8 have"
    assert "no multiple of 32 outputs" in str(semi_structured.misfit(weight[:20]))


@pytest.mark.skipif(semi_structured.unavailable() is not None, reason=str(semi_structured.unavailable()))
def test_pytorch_computes_the_same_on_the_gpu(rng: np.random.Generator) -> None:
    module = torch.nn.Linear(128, 64).half()
    module.weight = torch.nn.Parameter(torch.from_numpy(two_four(rng, 64, 128)).half())
    found = semi_structured.to_semi_structured(module)
    assert isinstance(found, semi_structured.SemiStructured)
    x = torch.randn(64, 128, dtype=torch.half).cuda()
    torch.testing.assert_close(found.module(x), module.cuda()(x), atol=1e-2, rtol=1e-2)


def test_from_the_command_line(cli: Cli, tmp_path: Path, rng: np.random.Generator) -> None:
    network(tmp_path / "m.onnx", rng)
    done = cli("passes", "run", "two_four", "m.onnx", "out.onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["details"]["parity"]["max_abs"] == 0
    done = cli("passes", "run", "sparse_initializer", "m.onnx", "s.onnx")
    assert done.returncode == 1
    assert "66.7%" in done.stdout
