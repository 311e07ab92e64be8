"""Static int8: ranges, masks, methods, 16 bits, and the search for what must not be quantised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Cli
from onnx import TensorProto, helper, numpy_helper
from tiny_graphs import clean, kinds, outputs, save

from edgeredux.artifact import Artifact
from edgeredux.errors import ArtifactError, DataError
from edgeredux.passes.onnx import int8_static
from edgeredux.passes.onnx.files import read
from edgeredux.passes.onnx.int8_static import Int8Static
from edgeredux.passes.onnx.qdq_judge import Judge
from edgeredux.passes.onnx.qdq_pairs import constants, pairs
from edgeredux.passes.onnx.qdq_search import Search, Switches
from edgeredux.rewrite import rewrite
from edgeredux.seams import PassContext

Array = np.ndarray[Any, Any]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    (tmp_path / "scratch").mkdir()
    return PassContext([], tmp_path / "log", tmp_path / "scratch")


def given(context: PassContext, feeds: list[dict[str, Array]]) -> PassContext:
    return PassContext(feeds, context.log, context.scratch)


def layers(path: Path, rng: np.random.Generator, gain: float) -> Path:
    """Two layers; between them one channel is `gain` times the others, and then it is not."""
    gains = np.ones(32, np.float32)
    gains[3] = gain
    w, v = (rng.normal(size=(32, 32)).astype(np.float32) / 6 for _ in range(2))
    w[rng.random(w.shape) < 0.5] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "up"], ["loud"], name="louder"),
        helper.make_node("Relu", ["loud"], ["r"], name="relu"),
        helper.make_node("Mul", ["r", "down"], ["quiet"], name="quieter"),
        helper.make_node("MatMul", ["quiet", "v"], ["y"], name="second"),
    ]
    shape = (FLOAT, ["n", 32])
    return save(path, nodes, {"x": shape}, {"y": shape}, {"w": w, "v": v, "up": gains, "down": 1 / gains})


def normal(rng: np.random.Generator, count: int = 16) -> list[dict[str, Array]]:
    return [{"x": rng.normal(size=(8, 32)).astype(np.float32)} for _ in range(count)]


def cosine(a: Array, b: Array) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def test_what_bears_it_is_quantised_by_channel(tmp_path: Path, context: PassContext, rng: np.random.Generator) -> None:
    source, out, feeds = layers(tmp_path / "m.onnx", rng, 1), tmp_path / "out.onnx", normal(rng)
    change = Int8Static().run(source, out, given(context, feeds))
    assert (change.details["restored"], change.details["calibrated"], change.details["cosine"]["held"]) == ([], 12, 4)
    assert change.details["cosine"]["after"] > 0.999
    weights = {item.name: numpy_helper.to_array(item) for item in onnx.load(out).graph.initializer}
    w = numpy_helper.to_array(next(item for item in onnx.load(source).graph.initializer if item.name == "w"))
    np.testing.assert_allclose(weights["w_scale"], np.abs(w).max(axis=0) / 127, rtol=1e-3)
    assert not weights["w_quantized"][w == 0].any()
    assert change.details["zeros"] == {
        "weights": 1,
        "before": (w == 0).sum(),
        "after": (weights["w_quantized"] == 0).sum(),
        "not_found": [],
    }
    low, high = (
        float(f(feed["x"] for feed in feeds[:12]))
        for f in (lambda a: min(x.min() for x in a), lambda a: max(x.max() for x in a))
    )
    assert weights["x_scale"] == pytest.approx((high - low) / 255, rel=1e-5)  # MinMax: the whole range in 255 steps
    assert cosine(outputs(out, **feeds[0])[0], outputs(source, **feeds[0])[0]) > 0.999


def test_an_old_opset_is_raised_for_scales_by_channel(
    tmp_path: Path, context: PassContext, rng: np.random.Generator
) -> None:
    source, feeds = layers(tmp_path / "m.onnx", rng, 1), normal(rng)
    old = onnx.load(source)
    old.opset_import[0].version, old.ir_version = 11, 6
    onnx.save(old, source)
    change = Int8Static().run(source, tmp_path / "out.onnx", given(context, feeds))
    assert change.changed, change.why
    assert onnx.load(tmp_path / "out.onnx").opset_import[0].version == 13
    assert cosine(outputs(tmp_path / "out.onnx", **feeds[0])[0], outputs(source, **feeds[0])[0]) > 0.999


@pytest.mark.parametrize("how", ["float", "uint16"])
def test_the_search_restores_what_spoils_the_outputs(
    tmp_path: Path, context: PassContext, rng: np.random.Generator, how: Any
) -> None:
    source, out, feeds = layers(tmp_path / "m.onnx", rng, 3000), tmp_path / "out.onnx", normal(rng)
    steps = [("int8_static", Int8Static(restore=how, most=0.5))]
    made = rewrite(Artifact.of(source, "m", "reduced"), steps, given(context, feeds), feeds[:2], tmp_path)
    change = made.history[0]
    assert change.changed, change.why
    assert {item["tensor"] for item in change.details["restored"]} == {"loud", "r", "up", "down"}
    assert change.details["cosine"]["before"] < 0.9 < 0.99 < change.details["cosine"]["after"]
    errors = [item["error"] for item in change.details["restored"]]
    assert errors == sorted(errors, reverse=True)
    out = made.path
    assert len(pairs(read(out), constants(read(source)))) == change.details["quantised"] + (2 if how == "uint16" else 0)
    zero = {item.name: item.data_type for item in onnx.load(out).graph.initializer}
    assert zero.get("loud_zero160") == (TensorProto.UINT16 if how == "uint16" else None)
    declined = Int8Static(restore=how, most=0.1).run(source, tmp_path / "no.onnx", given(context, feeds))
    assert not declined.changed
    assert "of 8 values does not reach 0.99" in declined.why
    assert not (tmp_path / "no.onnx").exists()
    free = Int8Static(cosine=0).run(source, tmp_path / "no.onnx", given(context, feeds))
    assert (free.changed, free.details["restored"]) == (True, [])
    assert free.details["cosine"]["after"] < 0.9


def test_the_switches_of_the_probe_say_what_the_file_does(
    tmp_path: Path, context: PassContext, rng: np.random.Generator
) -> None:
    source, feeds = layers(tmp_path / "in.onnx", rng, 60), normal(rng, 4)
    Int8Static(cosine=0)._quantise(source, tmp_path / "all.onnx", feeds, [])
    judge = Judge(tmp_path, feeds, None, 1)
    for how in ("float", "uint16"):
        probed = judge.probed(how)
        for restored in ([], [1], [0, 3], [5], [0, 1, 2, 3, 4, 5, 6, 7]):
            switches = np.ones(8, np.bool_)
            switches[restored] = False
            # Integer products sum exactly what the probe sums in float.
            assert probed(switches) == pytest.approx(judge.cosine_of_file(restored, how), abs=1e-4)
    assert judge.cosine_of_file(list(range(8)), "float") > 0.9998  # weights are int8 still


def test_search_finds_the_fewest_in_order_of_error() -> None:
    costs = np.array([0.001, 0.2, 0.03, 0.0, 0.05, 0.002])
    asked: list[int] = []

    def cosine_of(switches: Switches) -> float:
        asked.append(int(switches.sum()))
        return float(1 - costs[switches].sum())

    search = Search(cosine_of, 6, 0.95, 4)
    assert search.run() == [1, 4]
    assert search.order[:3] == [1, 4, 2]
    np.testing.assert_allclose(search.errors, costs, atol=1e-12)
    assert search.after == pytest.approx(1 - 0.033)
    assert Search(cosine_of, 6, 0.95, 1).run() is None
    assert Search(cosine_of, 6, 0.5, 0).run() == []
    together = Search(lambda on: 0.0 if on[1] and on[4] else 1.0 - 0.001 * float(on[2]), 6, 0.9, 6)
    assert together.run() == [1]  # nothing alone is worse than 2, and 1 or 4 need not both be restored


def masked(path: Path, rng: np.random.Generator) -> Path:
    """Scores of padded sequences, softmax, what is attended to."""
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["keep"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["keep", "one"], ["keep3"]),
        helper.make_node("Where", ["keep3", "zero", "low"], ["add"]),
        helper.make_node("Transpose", ["x"], ["xt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "xt"], ["s"], name="scores"),
        helper.make_node("Add", ["s", "add"], ["m"], name="mask"),
        helper.make_node("Softmax", ["m"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "x"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    axes = ["batch", "sequence"]
    kinds_of = {"x": (FLOAT, [*axes, 16]), "attention_mask": (INT64, axes)}
    scalars = {"zero": np.array(0, np.float32), "low": np.array(-3.4028235e38, np.float32), "one": np.array([1])}
    return save(
        path,
        nodes,
        kinds_of,
        {"y": (FLOAT, [*axes, 16])},
        {**scalars, "w": rng.normal(size=(16, 16)).astype(np.float32)},
    )


def padded(rng: np.random.Generator) -> list[dict[str, Array]]:
    mask = np.array([[1] * 8, [1] * 5 + [0] * 3])
    return [{"x": rng.normal(size=(2, 8, 16)).astype(np.float32) / 2, "attention_mask": mask} for _ in range(8)]


def test_masks_are_clamped_before_ranges_are_taken(
    tmp_path: Path, context: PassContext, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, feeds = masked(tmp_path / "m.onnx", rng), padded(rng)
    step = Int8Static(activation="uint16", cosine=0)
    change = step.run(source, tmp_path / "out.onnx", given(context, feeds))
    assert change.details["masks"] == ["low"]
    assert change.details["cosine"]["after"] > 0.999
    monkeypatch.setattr(int8_static, "ClampMasks", lambda floor: _Nothing())
    assert "masks no Softmax" in step.run(source, tmp_path / "no.onnx", given(context, feeds)).why
    monkeypatch.setattr(Int8Static, "_unfit", lambda self, model: None)
    spoilt = step.run(source, tmp_path / "no.onnx", given(context, feeds))
    assert spoilt.details["cosine"]["after"] < 0.9


class _Nothing:
    clamped: tuple[str, ...] = ()

    def __call__(self, model: Any) -> None: ...


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_other_methods_take_narrower_ranges(
    tmp_path: Path, context: PassContext, rng: np.random.Generator, method: Any
) -> None:
    source, feeds = layers(tmp_path / "m.onnx", rng, 1), normal(rng)
    for feed in feeds[:12]:
        feed["x"][0, 0] = 40  # an outlier that MinMax gives its range to
    scales = {}
    for name in ("minmax", method):
        out = tmp_path / f"{name}.onnx"
        assert Int8Static(method=name, percentile=99, cosine=0).run(source, out, given(context, feeds)).changed
        found = {item.name: numpy_helper.to_array(item) for item in onnx.load(out).graph.initializer}
        scales[name] = float(found["x_scale"])
    assert scales[method] < 0.8 * scales["minmax"]


def test_a_table_keeps_a_scale_a_row(tmp_path: Path, context: PassContext, rng: np.random.Generator) -> None:
    table = rng.normal(size=(200, 32)).astype(np.float32)
    table[7] *= 50
    w = rng.normal(size=(32, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="rows"),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="layer"),
    ]
    source = save(
        tmp_path / "m.onnx", nodes, {"ids": (INT64, ["n"])}, {"y": (FLOAT, ["n", 8])}, {"table": table, "w": w}
    )
    feeds = [{"ids": rng.integers(8, 200, 32)} for _ in range(8)]
    change = Int8Static().run(source, tmp_path / "out.onnx", given(context, feeds))
    assert (change.details["tables"], change.details["zeros"]["not_found"]) == (1, [])
    stored = {item.name: numpy_helper.to_array(item) for item in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert (stored["table_row_int8"].dtype, stored["table_row_scale"].dtype) == (np.int8, np.float32)
    whole = Int8Static(embeddings=False, cosine=0).run(source, tmp_path / "b.onnx", given(context, feeds))
    assert whole.details["cosine"]["after"] < 0.99 < change.details["cosine"]["after"]


def test_a_clean_graph_and_bad_input(tmp_path: Path, context: PassContext, rng: np.random.Generator) -> None:
    out = tmp_path / "out.onnx"
    source = layers(tmp_path / "m.onnx", rng, 1)
    with pytest.raises(DataError, match="no calibration feeds"):
        Int8Static().run(source, out, context)
    with pytest.raises(DataError, match="no input 'x'"):
        Int8Static().run(source, out, given(context, [{"z": np.ones(3)}]))
    with pytest.raises(DataError, match=r"is \(2, 31\)"):
        Int8Static().run(source, out, given(context, [{"x": np.ones((2, 31), np.float32)}]))
    assert "which is no node" in Int8Static(exclude=("no",)).run(source, out, given(context, normal(rng))).why
    assert "does not have" in Int8Static(operators=("Conv",)).run(source, out, given(context, normal(rng))).why
    only = Int8Static(operators=("MatMul",)).run(source, tmp_path / "q.onnx", given(context, normal(rng)))
    assert only.changed
    assert kinds(tmp_path / "q.onnx")["QuantizeLinear"] == 4
    assert "quantised already" in Int8Static().run(tmp_path / "q.onnx", out, given(context, normal(rng))).why
    idle = save(
        tmp_path / "i.onnx", [helper.make_node("Floor", ["x"], ["y"])], {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}, {}
    )
    assert "no operator" in Int8Static().run(idle, out, given(context, [{"x": np.ones(2, np.float32)}])).why
    (tmp_path / "junk.onnx").write_bytes(b"\x08junk")
    with pytest.raises(ArtifactError):
        Int8Static().run(tmp_path / "junk.onnx", out, context)
    assert not out.exists()
    clean(tmp_path / "c.onnx")


def test_from_the_command_line(cli: Cli, tmp_path: Path, rng: np.random.Generator) -> None:
    layers(tmp_path / "m.onnx", rng, 1)
    np.savez(tmp_path / "feed.npz", **normal(rng)[0])
    done = cli(
        "passes",
        "run",
        "int8_static",
        "m.onnx",
        "out.onnx",
        "--data",
        "feed.npz",
        "--set",
        "method=percentile",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    details = json.loads(done.stdout)["details"]
    assert details["parity"]["passed"]
    assert details["quantised"] == 8


class _Judge:
    """Value 1 spoils the file, and the probe does not show it."""

    def probed(self, how: Any) -> Any:
        return lambda switches: 1.0 - 0.001 * float(switches[1]) - 0.0001 * float(switches[2])

    def cosine_of_file(self, chosen: Any, how: Any) -> float:
        return 0.999 if 1 in chosen else 0.5


def test_a_file_that_is_worse_than_its_probe_is_searched_too() -> None:
    search, chosen = Int8Static(most=0.5)._search(_Judge(), 6)  # type: ignore[arg-type]
    assert chosen == [1]
    assert (search.before, search.after) == (0.5, 0.999)
    assert search.errors[1] == pytest.approx(0.001)
    assert Int8Static(most=0.5, cosine=0)._search(_Judge(), 6)[1] == []  # type: ignore[arg-type]


def test_a_far_constant_is_found_in_a_constant_node(
    tmp_path: Path, context: PassContext, rng: np.random.Generator
) -> None:
    low = numpy_helper.from_array(np.array(-3e38, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["low"], value=low),
        helper.make_node("Max", ["x", "low"], ["y"]),
    ]
    source = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 32])}, {"y": (FLOAT, ["n", 32])}, {})
    change = Int8Static().run(source, tmp_path / "out.onnx", given(context, normal(rng)))
    assert "constant low reaches -3e+38" in change.why


def test_only_what_onnxruntime_raises_is_a_reason_to_decline(
    tmp_path: Path, context: PassContext, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, feeds = layers(tmp_path / "m.onnx", rng, 1), normal(rng)

    def fails(*_: Any, **__: Any) -> None:
        raise KeyError("whose")

    monkeypatch.setattr(int8_static, "quantize_static", fails)
    change = Int8Static().run(source, tmp_path / "out.onnx", given(context, feeds))
    assert change.why == "declined: ONNX Runtime cannot quantise it: 'whose'"
    monkeypatch.undo()
    monkeypatch.setattr(int8_static, "restore", fails)
    with pytest.raises(KeyError):
        Int8Static().run(source, tmp_path / "out.onnx", given(context, feeds))


def test_outputs_that_are_nothing_to_compare_with(
    tmp_path: Path, context: PassContext, rng: np.random.Generator
) -> None:
    source = layers(tmp_path / "m.onnx", rng, 1)
    feeds = normal(rng, 4)
    feeds[-1]["x"][0, 0] = np.nan
    change = Int8Static().run(source, tmp_path / "out.onnx", given(context, feeds))
    assert "cannot be compared" in change.why
    assert "NaN" in change.why
