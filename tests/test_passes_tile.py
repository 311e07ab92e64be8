"""Tile lowering: bands found from zeros alone, lowered where it pays, the function kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tiny_graphs import Array, clean, kinds, outputs, save

from edgeredux.artifact import Artifact
from edgeredux.errors import ArtifactError
from edgeredux.passes.onnx import tile_cost
from edgeredux.passes.onnx.dead_structure import DeadStructure
from edgeredux.passes.onnx.int8_dynamic import Int8Dynamic
from edgeredux.passes.onnx.residual_sum import ResidualSum
from edgeredux.passes.onnx.tile import Tile
from edgeredux.passes.onnx.tile_bands import block, density, groupings
from edgeredux.rewrite import rewrite
from edgeredux.seams import PassContext
from edgeredux.sparsity.patterns import parse

RNG = np.random.default_rng(11)
FLOAT = TensorProto.FLOAT


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    (tmp_path / "scratch").mkdir()
    return PassContext([], tmp_path / "log", tmp_path / "scratch")


def tiled(outputs: int, inputs: int, pattern: str = "tile:4x16", zeros: float = 0.5) -> Array:
    """A weight [outputs, inputs] pruned by magnitude with the pattern's own mask."""
    random = np.random.default_rng([11, outputs, inputs])
    weight = torch.from_numpy(random.normal(size=(outputs, inputs)).astype(np.float32))
    # Whole blocks differ in size, as trained ones do; bands of pure noise would all be alike.
    sizes = random.gamma(1, 1, size=(outputs // 64, inputs // 16)).astype(np.float32)
    weight *= torch.from_numpy(sizes.repeat(64, axis=0).repeat(16, axis=1))
    form = parse(pattern)
    weight.masked_fill_(form.mask(weight.abs(), form.removed(outputs, inputs, zeros)), 0)
    found: Array = weight.numpy() / np.float32(inputs**0.5)
    return found


def linear(path: Path, weight: Array, kind: str = "MatMul") -> Path:
    """y = x @ weight.T (+ bias) as MatMul on [b, s, inputs], Gemm on [n, inputs] or 1x1 Conv."""
    rows, columns = weight.shape
    bias = RNG.normal(size=rows).astype(np.float32)
    x, y = (FLOAT, ["n", columns]), (FLOAT, ["n", rows])
    if kind == "MatMul":
        x, y = (FLOAT, ["b", "s", columns]), (FLOAT, ["b", "s", rows])
        return save(path, [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")], {"x": x}, {"y": y},
                    {"w": np.ascontiguousarray(weight.T)})  # fmt: skip
    if kind == "Conv":
        x, y = (FLOAT, ["b", columns, 6, 6]), (FLOAT, ["b", rows, 3, 3])
        node = helper.make_node("Conv", ["x", "w", "c"], ["y"], name="layer", strides=[2, 2])
        return save(path, [node], {"x": x}, {"y": y}, {"w": weight[:, :, None, None], "c": bias})
    turned = kind == "Gemm transposed"
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="layer", transB=int(turned))
    stored = weight if turned else np.ascontiguousarray(weight.T)
    return save(path, [node], {"x": x}, {"y": y}, {"w": stored, "c": bias})


def same(left: Path, right: Path, **feed: Array) -> None:
    for one, other in zip(outputs(left, **feed), outputs(right, **feed), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("bands", "width"), [(1, 16), (2, 8), (4, 16), (8, 32), (16, 1)])
@pytest.mark.parametrize("zeros", [0.25, 0.5, 0.75])
def test_every_tile_pattern_is_seen_in_its_zeros(bands: int, width: int, zeros: float) -> None:
    kept = tiled(128, 256, f"tile:{bands}x{width}", zeros) != 0
    exact = [g for g in groupings(kept, 16) if density(g.bands(), *kept.shape) == kept.mean()]
    assert exact
    found = min(exact, key=lambda groups: len(groups.bands())).bands()
    assert len(found) <= bands
    for band in found:  # against the matrix itself: what a band reads is exactly what is not zero there
        part = kept[band.start : band.stop]
        assert (np.flatnonzero(part.all(axis=0)) == band.columns).all()
        assert not np.delete(part, band.columns, axis=1).any()
        assert block(band.columns, 256) % width == 0


def test_single_zeros_and_uneven_bands_do_not_hide_them() -> None:
    kept = np.ones((100, 64), bool)
    kept[:70, 32:] = False
    kept[70:, :48] = False
    kept[[3, 71], [5, 60]] = False  # weights that happen to be zero
    found = groupings(kept, 16)[0].bands()
    assert [(band.start, band.stop, len(band.columns)) for band in found] == [(0, 70, 32), (70, 100, 16)]


def test_scattered_zeros_are_no_bands() -> None:
    kept = np.random.default_rng(0).random((64, 64)) < 0.5
    assert all(density(groups.bands(), 64, 64) > 0.99 for groups in groupings(kept, 8))


def test_the_cost_model_gives_the_measured_times() -> None:
    # Kernel times by ONNX Runtime's profiler on the machine that tile_cost.py names, in microseconds.
    for rates, threads, tokens, shape, measured in (
        (tile_cost.FLOAT, 1, 128, (768, 3072), 2678),
        (tile_cost.FLOAT, 1, 128, (3072, 768), 2702),
        (tile_cost.FLOAT, 1, 16, (768, 3072), 304),
        (tile_cost.INT8, 1, 128, (768, 3072), 662),
        (tile_cost.INT8, 1, 128, (3072, 768), 644),
        (tile_cost.INT8, 1, 16, (768, 3072), 93),
        (tile_cost.FLOAT, 2, 128, (768, 3072), 1141),
        (tile_cost.FLOAT, 2, 128, (192, 1536), 153),
        (tile_cost.INT8, 2, 128, (768, 3072), 354),
        (tile_cost.INT8, 2, 128, (192, 1536), 69),
        (tile_cost.INT8, 2, 16, (768, 3072), 53),
        (tile_cost.INT8, 2, 16, (192, 3072), 21),
    ):
        found = tile_cost.dense(rates, tokens, *shape, threads) / 1e3
        assert found == pytest.approx(measured, rel=0.15 if threads == 1 else 0.21)


def test_threads_count_for_the_cost_rule(tmp_path: Path, context: PassContext) -> None:
    # What pays in one thread does not in two: each of the small products brings a meeting of the threads.
    source = linear(tmp_path / "m.onnx", tiled(768, 384, "tile:4x16"))
    one, two = (Tile(tokens=32, threads=n).run(source, tmp_path / f"{n}.onnx", context) for n in (1, 2))
    gains = [change.details["layers"]["layer"]["expected_gain"] for change in (one, two)]
    assert gains[0] > gains[1]
    assert (one.changed, two.changed) == (True, False)
    # Unless it says so, the pass asks about the threads of the run.
    run = dataclasses.replace(context, threads=2)
    assert Tile(tokens=32).run(source, tmp_path / "run.onnx", run).details == two.details


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Gemm transposed", "Conv"])
@pytest.mark.parametrize("pattern", ["tile:2x16", "tile:4x16", "tile:4x1"])
def test_tiles_become_small_products(tmp_path: Path, context: PassContext, kind: str, pattern: str) -> None:
    source, out = linear(tmp_path / "m.onnx", tiled(512, 768, pattern), kind), tmp_path / "out.onnx"
    bands = int(pattern[5])
    # The cost rule joins bands where that is cheaper; at these tokens it does not.
    tokens = 1 if pattern == "tile:4x1" else 256
    change = Tile(minimum_gain=0, tokens=tokens).run(source, out, context)
    assert change.changed, change.why
    said = change.details["layers"]["layer"]
    assert (said["lowered"], said["bands"], said["density"]) == (True, bands, 0.5)
    found = kinds(out)
    assert found[kind.split()[0]] == bands
    assert found["Concat"] == 1
    assert found["Gather"] == bands
    assert change.details["macs_after"] * 2 == change.details["macs_before"] == 512 * 768
    onnx.checker.check_model(str(out), full_check=True)
    assert out.stat().st_size < 0.52 * source.stat().st_size
    for b, s in ((1, 1), (2, 7), (0, 3)):
        shape = {"MatMul": (b, s, 768), "Conv": (b, 768, 6, 6)}.get(kind, (b * s, 768))
        same(source, out, x=RNG.normal(size=shape).astype(np.float32))


def test_a_block_is_copied_at_once(tmp_path: Path, context: PassContext) -> None:
    Tile(minimum_gain=0, tokens=256).run(linear(tmp_path / "m.onnx", tiled(512, 768)), tmp_path / "out.onnx", context)
    model = onnx.load(tmp_path / "out.onnx")
    sizes = {item.name: list(item.dims) for item in model.graph.initializer}
    gathers = [node for node in model.graph.node if node.op_type == "Gather"]
    assert [sizes[node.input[1]] for node in gathers] == [[24]] * 4  # half of 48 blocks of 16
    assert len({node.input[0] for node in gathers}) == 1  # one view for all


def test_equal_reads_are_shared_and_slices_need_no_gather(tmp_path: Path, context: PassContext) -> None:
    first, second = (RNG.normal(size=(256, 512)).astype(np.float32) for _ in range(2))
    first[:128, 256:] = second[:128, 256:] = 0
    first[128:, ::2] = second[128:, ::2] = 0
    nodes = [helper.make_node("MatMul", ["x", name], [f"y{name}"], name=name) for name in "qk"]
    kind = {"x": (FLOAT, ["n", 512])}, {"yq": (FLOAT, ["n", 256]), "yk": (FLOAT, ["n", 256])}
    source = save(tmp_path / "m.onnx", nodes, *kind, {"q": first.T.copy(), "k": second.T.copy()})
    assert Tile(minimum_gain=0).run(source, tmp_path / "out.onnx", context).changed
    assert kinds(tmp_path / "out.onnx") == {"Slice": 1, "Gather": 1, "MatMul": 4, "Concat": 2}
    same(source, tmp_path / "out.onnx", x=RNG.normal(size=(3, 512)).astype(np.float32))


def feed_forward(path: Path, pattern: str = "tile:2x16", zeros: float = 0.5) -> Path:
    w, v = tiled(1024, 256, pattern, zeros), tiled(256, 1024, pattern, zeros)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="up"),
        helper.make_node("Add", ["m", "b"], ["h"]),
        helper.make_node("Gelu", ["h"], ["g"]),
        helper.make_node("MatMul", ["g", "v"], ["y"], name="down"),
    ]
    weights = {"w": w.T.copy(), "v": v.T.copy(), "b": RNG.normal(size=1024).astype(np.float32)}
    return save(path, nodes, {"x": (FLOAT, ["n", 256])}, {"y": (FLOAT, ["n", 256])}, weights)


def test_hidden_channels_are_ordered_so_that_two_bands_read_slices(tmp_path: Path, context: PassContext) -> None:
    source, out = feed_forward(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    assert Tile(minimum_gain=0, tokens=128).run(source, out, context).changed
    found = kinds(out)
    assert (found["Slice"], found["Gather"]) == (2, 2)  # down reads slices, up gathers
    same(source, out, x=RNG.normal(size=(5, 256)).astype(np.float32))


def test_dead_structure_then_tiles_leave_less_than_the_tiles_alone(tmp_path: Path, context: PassContext) -> None:
    source = feed_forward(tmp_path / "m.onnx", zeros=0.75)
    alone = Tile(minimum_gain=0).run(source, tmp_path / "a.onnx", context)
    assert DeadStructure().run(source, tmp_path / "d.onnx", context).changed
    both = Tile(minimum_gain=0).run(tmp_path / "d.onnx", tmp_path / "b.onnx", context)
    assert both.details["macs_after"] < alone.details["macs_after"]
    same(source, tmp_path / "b.onnx", x=RNG.normal(size=(5, 256)).astype(np.float32))


def test_the_cost_rule_declines_with_its_number(tmp_path: Path, context: PassContext) -> None:
    source = linear(tmp_path / "m.onnx", tiled(512, 768))
    change = Tile(minimum_gain=3).run(source, tmp_path / "out.onnx", context)
    assert not change.changed
    assert change.why.startswith("declined: ")
    assert "below 3x" in change.why
    assert not (tmp_path / "out.onnx").exists()
    small = linear(tmp_path / "s.onnx", tiled(64, 32, "tile:4x16"))  # starting operators costs more than it saves
    assert not Tile().run(small, tmp_path / "out.onnx", context).changed


def test_scattered_zeros_are_declined(tmp_path: Path, context: PassContext) -> None:
    weight = RNG.normal(size=(256, 256)).astype(np.float32)
    weight[RNG.random(weight.shape) < 0.8] = 0
    change = Tile(minimum_gain=0).run(linear(tmp_path / "m.onnx", weight), tmp_path / "out.onnx", context)
    assert not change.changed
    assert "not in tiles" in change.why


@pytest.mark.parametrize("step", [Tile(), ResidualSum()], ids=lambda step: type(step).__name__)
def test_a_clean_graph_is_left_alone(tmp_path: Path, context: PassContext, step: Any) -> None:
    dense = linear(tmp_path / "d.onnx", np.ones((8, 8), np.float32))
    for source in (clean(tmp_path / "m.onnx"), dense):
        change = step.run(source, tmp_path / "out.onnx", context)
        assert not change.changed
        assert change.why.startswith("declined: ")
        assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("step", [Tile(), ResidualSum()], ids=lambda step: type(step).__name__)
def test_a_damaged_file_is_one_line(tmp_path: Path, context: PassContext, step: Any) -> None:
    source = linear(tmp_path / "m.onnx", tiled(256, 256))
    source.write_bytes(source.read_bytes()[:3000])
    with pytest.raises(ArtifactError, match=r"m\.onnx"):
        step.run(source, tmp_path / "out.onnx", context)


def test_layers_inside_a_branch_are_lowered_there(tmp_path: Path, context: PassContext) -> None:
    weight = np.ascontiguousarray(tiled(512, 768).T)
    y = helper.make_tensor_value_info("z", FLOAT, ["n", 512])
    then = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"], name="inner")], "then", [], [y])
    other = helper.make_graph([helper.make_node("MatMul", ["x", "u"], ["z"])], "else", [], [y])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    inputs = {"x": (FLOAT, ["n", 768]), "c": (TensorProto.BOOL, [])}
    u = RNG.normal(size=(768, 512)).astype(np.float32)
    source = save(tmp_path / "m.onnx", nodes, inputs, {"y": (FLOAT, ["n", 512])}, {"w": weight, "u": u})
    change = Tile(minimum_gain=0).run(source, tmp_path / "out.onnx", context)
    assert change.changed
    assert change.details["layers"]["inner"]["lowered"]
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    x = RNG.normal(size=(3, 768)).astype(np.float32)
    for choice in (True, False):
        same(source, tmp_path / "out.onnx", x=x, c=np.array(choice))


def test_weights_that_may_be_overridden_stay(tmp_path: Path, context: PassContext) -> None:
    source = linear(tmp_path / "m.onnx", tiled(512, 768))
    model = onnx.load(source)
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [768, 512]))
    onnx.save(model, source)
    assert not Tile(minimum_gain=0).run(source, tmp_path / "out.onnx", context).changed


def test_the_pass_list_proves_it(tmp_path: Path, context: PassContext) -> None:
    source = feed_forward(tmp_path / "m.onnx")
    feeds = [{"x": RNG.normal(size=(n, 256)).astype(np.float32)} for n in (1, 3, 16)]
    steps: list[tuple[str, Any]] = [("dead_structure", DeadStructure()), ("tile", Tile(minimum_gain=0))]
    made = rewrite(Artifact.of(source, "m", "reduced"), steps, context, feeds, tmp_path)
    assert [change.changed for change in made.history] == [True, True]
    assert made.history[-1].details["parity"]["passed"]


def test_a_residual_sum_stays_out_of_the_norm(tmp_path: Path, context: PassContext) -> None:
    nodes = [
        helper.make_node("Add", ["x", "r"], ["s"]),
        helper.make_node("LayerNormalization", ["s", "gain", "shift"], ["n"]),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    shape = (FLOAT, ["b", "s", 8])
    weights = {"gain": RNG.random(8).astype(np.float32), "shift": RNG.random(8).astype(np.float32)}
    source = save(tmp_path / "m.onnx", nodes, {"x": shape, "r": shape}, {"y": shape}, weights)
    change = ResidualSum().run(source, tmp_path / "out.onnx", context)
    assert change.details == {"sums": 1}
    assert kinds(tmp_path / "out.onnx") == {"Sum": 1, "LayerNormalization": 1, "Relu": 1}
    feed = {name: RNG.normal(size=(2, 3, 8)).astype(np.float32) for name in "xr"}
    same(source, tmp_path / "out.onnx", **feed)
    assert "SkipLayerNormalization" not in optimised(tmp_path / "out.onnx", tmp_path)
    assert "SkipLayerNormalization" in optimised(source, tmp_path)  # what the pass is there to prevent


def optimised(path: Path, folder: Path) -> str:
    """The operators that ONNX Runtime really executes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options)
    return " ".join(kinds(folder / "optimised.onnx"))


@pytest.mark.parametrize("bias", [False, True])
def test_int8_quantises_an_activation_once_for_all_bands(tmp_path: Path, context: PassContext, bias: bool) -> None:
    weight = tiled(512, 768)
    x, y = (FLOAT, ["b", "s", 768]), (FLOAT, ["b", "s", 512])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m" if bias else "y"], name="layer")]
    weights = {"w": np.ascontiguousarray(weight.T)}
    if bias:
        nodes += [helper.make_node("Add", ["m", "c"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
        weights["c"] = RNG.normal(size=512).astype(np.float32)
    source = save(tmp_path / "m.onnx", nodes, {"x": x}, {"y": y}, weights)
    assert Tile(minimum_gain=0, tokens=256, int8=True).run(source, tmp_path / "t.onnx", context).changed
    change = Int8Dynamic().run(tmp_path / "t.onnx", tmp_path / "q.onnx", context)
    assert (change.details["matmuls"], change.details["shared"]) == (4, 4)
    found = kinds(tmp_path / "q.onnx")
    assert (found["DynamicQuantizeLinear"], found["Gather"], found["MatMulInteger"]) == (1, 4, 4)
    assert Int8Dynamic().run(source, tmp_path / "dense.onnx", context).changed
    feed = {"x": RNG.normal(size=(2, 7, 768)).astype(np.float32)}
    # Against the dense int8 file: same activation steps, same weight steps, so the same integers and sums.
    np.testing.assert_allclose(
        outputs(tmp_path / "q.onnx", **feed)[0], outputs(tmp_path / "dense.onnx", **feed)[0], atol=1e-4
    )
    # ONNX Runtime's own fusion takes every band, its bias included.
    run = optimised(tmp_path / "q.onnx", tmp_path).split()
    assert (run.count("MatMulIntegerToFloat"), run.count("MatMulInteger")) == (1, 0)
    assert "Add" not in run


def test_column_scales_come_last_where_positions_are_few(tmp_path: Path, context: PassContext) -> None:
    source = linear(tmp_path / "m.onnx", tiled(512, 768))
    few = Int8Dynamic(tokens=1).run(source, tmp_path / "few.onnx", context)
    many = Int8Dynamic().run(source, tmp_path / "many.onnx", context)
    assert (few.details["scaled_last"], many.details["scaled_last"]) == (1, 0)
    onnx.checker.check_model(str(tmp_path / "few.onnx"), full_check=True)
    assert "DynamicQuantizeMatMul" in optimised(tmp_path / "few.onnx", tmp_path)  # still one operator
    for b, s in ((1, 1), (2, 7), (0, 3)):
        x = RNG.normal(size=(b, s, 768)).astype(np.float32)
        one, other = (outputs(tmp_path / name, x=x)[0] for name in ("few.onnx", "many.onnx"))
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)  # two factors multiplied in another order


@pytest.mark.parametrize("behind", [["Add"], ["Identity", "Add"], ["Reshape", "Add"], ["Relu", "Add"], ["Residual"]])
def test_column_scales_stay_where_onnx_runtime_would_scale_a_bias(
    tmp_path: Path, context: PassContext, behind: list[str]
) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t0"], name="layer")]
    for i, kind in enumerate(behind):
        extra = {"Add": ["c"], "Reshape": ["keep"], "Residual": ["r"]}.get(kind, [])
        nodes.append(helper.make_node(kind.replace("Residual", "Add"), [f"t{i}", *extra], [f"t{i + 1}"]))
    kind = (FLOAT, ["b", "s", 64])
    weights = {
        "w": tiled(64, 64, "tile:1x16").T.copy(),
        "c": np.full(64, 100, np.float32),
        "keep": np.zeros(3, np.int64),
    }
    source = save(tmp_path / "m.onnx", nodes, {"x": kind, "r": kind}, {f"t{len(behind)}": kind}, weights)
    change = Int8Dynamic(tokens=1).run(source, tmp_path / "q.onnx", context)
    assert change.details["scaled_last"] == int(behind[0] in ("Relu", "Residual"))
    feed = {name: RNG.normal(size=(2, 3, 64)).astype(np.float32) for name in "xr"}
    np.testing.assert_allclose(  # a scaled bias is wrong by 100
        outputs(tmp_path / "q.onnx", **feed)[0], outputs(source, **feed)[0], atol=0.2
    )
