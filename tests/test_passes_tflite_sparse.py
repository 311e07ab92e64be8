"""Sparse weights in TFLite files: right under every resolver, smaller, and declined with a reason elsewhere."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="LiteRT is not installed")

from tflite_files import HARM, File, blocky, damaged, mlp, unguarded  # noqa: E402

from edgeredux import delegates, isolated  # noqa: E402
from edgeredux.errors import ArtifactError, DataError  # noqa: E402
from edgeredux.execute import execute  # noqa: E402
from edgeredux.passes.tflite import packing  # noqa: E402
from edgeredux.passes.tflite.sparse_cost import Layer  # noqa: E402
from edgeredux.passes.tflite.sparse_encoding import encode, expand, parameters  # noqa: E402
from edgeredux.passes.tflite.sparse_weights import TfliteSparseWeights  # noqa: E402
from edgeredux.resolvers import RESOLVERS, agree_everywhere  # noqa: E402
from edgeredux.seams import PassContext, Tolerance  # noqa: E402

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)
CLOSE = Tolerance("test", atol=1e-4)
EVERYWHERE = {f"{name}/{threads}" for name in RESOLVERS for threads in (1, 2, 4) if name != "BUILTIN_REF"}


def feeds(columns: int, positions: int = 1, count: int = 2) -> list[dict[str, Array]]:
    return [{"x": RNG.normal(size=(positions, columns)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    return PassContext(feeds(256), tmp_path / "log", tmp_path)


def run(step: TfliteSparseWeights, source: Path, out: Path, context: PassContext, **environment: str) -> Any:
    """As the pass list does it."""
    arguments = {"step": step, "source": source, "out": out, "context": context}
    said = isolated.call("edgeredux.rewrite:run_pass", arguments, log=context.log, what="test", environment=environment)
    return said["change"]


def kinds(path: Path) -> dict[str, int]:
    from edgeredux.export.mask_floor import count_operators

    return count_operators(path)


def test_against_a_written_out_example() -> None:
    """Rows 0 and 2 keep one block each, row 1 none: segments count up to each row, indices name blocks of two."""
    weight = np.array([[0, 0, 1, 2], [0, 0, 0, 0], [3, 0, 0, 0]], np.float32)
    found = encode(weight, 2)
    assert found.values.tolist() == [1, 2, 3, 0]
    assert found.segments.tolist() == [0, 1, 1, 2]
    assert found.indices.tolist() == [1, 0]
    assert found.size_bytes == 4 * 4 + 4 + 2  # four floats, four segments and two indices of a byte
    np.testing.assert_array_equal(expand(found), weight)


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("shape", [(3, 16), (2, 3, 3, 32), (1, 1024)])
def test_encoding_gives_the_weight_back(block: int, shape: tuple[int, ...]) -> None:
    weight = RNG.normal(size=shape).astype(np.float32) * (RNG.random(size=shape) < 0.2)
    np.testing.assert_array_equal(expand(encode(weight, block)), weight)
    assert not encode(np.zeros(shape, np.int8), block).kept


def test_what_litert_itself_makes_of_the_encoding(tmp_path: Path) -> None:
    """LiteRT's DENSIFY operator is the other implementation: rank 2 and 4, float and int8, all widths of index."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    for dtype, shape, block in (
        (np.float32, (7, 64), 4),
        (np.int8, (300, 512), 16),
        (np.float32, (5, 3, 3, 8), 1),
        (np.int8, (260, 1040), 1),
    ):
        weight = (RNG.integers(-5, 6, size=shape) * (RNG.random(size=shape) < 0.5)).astype(dtype)
        file = File()
        stored = file.tensor("w", list(shape), encode(weight, block).values)
        file.graph.tensors[stored].sparsity = parameters(encode(weight, block))
        out = file.tensor("y", list(shape), dtype=dtype)
        file.operator("DENSIFY", "DensifyOptions", [stored], out)
        path = file.write(tmp_path / "m.tflite", file.tensor("x", [1]), out)
        interpreter = Interpreter(
            str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        )
        interpreter.allocate_tensors()
        interpreter.invoke()
        np.testing.assert_array_equal(interpreter.get_tensor(out), weight)


@pytest.mark.parametrize(("block", "width"), [(4, 256), (1, 250)])  # 250 columns are no whole number of fours
def test_right_under_every_resolver(tmp_path: Path, context: PassContext, block: int, width: int) -> None:
    source, out = mlp(tmp_path / "m.tflite", block, keep=0.05, width=width), tmp_path / "out.tflite"
    here = PassContext(feeds(width), context.log, tmp_path)
    change = run(TfliteSparseWeights(minimum_gain=0), source, out, here)
    assert change.changed, change.why
    assert [item["form"] for item in change.details["weights"]] == ["kernel", "kernel"]
    assert {item["block"] for item in change.details["weights"]} == {block}
    assert set(change.details["resolvers"]["resolvers"]) == EVERYWHERE | {"BUILTIN_REF/1"}
    assert kinds(out) == {"FULLY_CONNECTED": 2, "RESHAPE": 2}
    proof = agree_everywhere(source, out, feeds(width, count=3), CLOSE, context.log)
    assert proof["passed"], proof["reason"]
    # 5 % kept: the values, their places in bytes, the rows' beginnings, the biases, and less than 3 kB of all the rest
    kept = 2 * round(0.05 * width * width / block) * block
    assert out.stat().st_size < kept * (4 + 1 / block) + 2 * (width + 1) * 2 + 2 * width * 4 + 3000


def test_without_the_guard_the_default_delegate_returns_garbage(tmp_path: Path, context: PassContext) -> None:
    """What the guard is for. The child may crash as well: the delegate reads past the end of the packed weight."""
    source = mlp(tmp_path / "m.tflite")
    bare, guarded = unguarded(source, tmp_path / "bare.tflite"), tmp_path / "out.tflite"
    assert run(TfliteSparseWeights(), source, guarded, context).changed
    assert (delegates.unguarded(str(bare)), delegates.unguarded(str(guarded))) == (2, 0)
    code = (
        "import sys, numpy; from ai_edge_litert.interpreter import Interpreter; from edgeredux.delegates import misread;"
        "i = Interpreter(sys.argv[1]); i.allocate_tensors();"
        "i.set_tensor(i.get_input_details()[0]['index'], numpy.ones((1, 256), numpy.float32)); i.invoke();"
        "print(misread(i), float(numpy.abs(i.get_tensor(i.get_output_details()[0]['index'])).max()))"
    )
    said = {}
    for path in (source, bare, guarded):
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
        said[path.name] = done.stdout.split() if done.returncode == 0 else ["2", "crashed"]
    assert said["m.tflite"][0] == said["out.tflite"][0] == "0"
    assert float(said["out.tflite"][1]) == pytest.approx(float(said["m.tflite"][1]), rel=1e-4)
    assert said["bare.tflite"][0] == "2"  # the day this is 0, delegates have learnt to read sparse weights
    assert said["bare.tflite"][1] == "crashed" or float(said["bare.tflite"][1]) != pytest.approx(
        float(said["m.tflite"][1]), rel=1e-4
    )
    proof = agree_everywhere(source, bare, context.calibration, CLOSE, context.log)
    assert not proof["passed"]
    assert proof["reason"] == "under AUTO/1 thread(s): a delegate reads its sparse weights as dense ones"
    # The reference runtime of parity checks does not fall for it.
    given = context.calibration
    for a, b in zip(*(execute(path, given, log=context.log) for path in (source, bare)), strict=True):
        np.testing.assert_allclose(a["y"], b["y"], atol=1e-5)


def test_a_file_without_the_guard_is_mended(tmp_path: Path, context: PassContext) -> None:
    bare, out = unguarded(mlp(tmp_path / "m.tflite"), tmp_path / "bare.tflite"), tmp_path / "out.tflite"
    change = run(TfliteSparseWeights(), bare, out, context)
    assert change.changed, change.why
    assert change.why.startswith("2 unguarded sparse operators guarded")
    assert agree_everywhere(tmp_path / "m.tflite", out, context.calibration, CLOSE, context.log)["passed"]


def test_twice_changes_nothing_more(tmp_path: Path, context: PassContext) -> None:
    once = tmp_path / "once.tflite"
    assert run(TfliteSparseWeights(), mlp(tmp_path / "m.tflite", keep=0.05), once, context).changed
    again = run(TfliteSparseWeights(), once, tmp_path / "twice.tflite", context)
    assert not again.changed
    assert again.why.startswith("declined: ")
    assert not (tmp_path / "twice.tflite").exists()


def test_the_same_bytes_in_every_process(tmp_path: Path, context: PassContext) -> None:
    source, hashes = mlp(tmp_path / "m.tflite"), set()
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.tflite"
        assert run(TfliteSparseWeights(), source, out, context, PYTHONHASHSEED=seed).changed
        hashes.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_no_zeros_nothing_done(tmp_path: Path, context: PassContext) -> None:
    change = run(TfliteSparseWeights(), mlp(tmp_path / "m.tflite", keep=1.0), tmp_path / "out.tflite", context)
    assert not change.changed
    assert change.why == "declined: 2 without zeros"


def test_what_the_kernel_would_slow_down_is_stored_sparse_and_expanded(tmp_path: Path, context: PassContext) -> None:
    source, out = mlp(tmp_path / "m.tflite", block=1, keep=0.3), tmp_path / "out.tflite"
    change = run(TfliteSparseWeights(), source, out, context)
    assert change.changed, change.why
    assert [item["form"] for item in change.details["weights"]] == ["expand", "expand"]
    assert "the sparse kernel would gain less than 1.1x" in change.details["weights"][0]["why"]
    assert kinds(out) == {"DENSIFY": 2, "FULLY_CONNECTED": 2}
    assert out.stat().st_size < 0.45 * source.stat().st_size
    declined = run(TfliteSparseWeights(expand=False), source, tmp_path / "no.tflite", context)
    assert declined.why == "declined: 2 the sparse kernel would gain less than 1.1x"


def test_layer_without_bias_and_shared_weight(tmp_path: Path, context: PassContext) -> None:
    file = File()
    given = file.tensor("x", [1, 256])
    middle = file.dense(given, blocky(256, 256, 4, 0.05), bias=False)
    out = file.tensor("z", [1, 256])
    weight = file.graph.operators[0].inputs[1]
    file.operator("FULLY_CONNECTED", "FullyConnectedOptions", [middle, weight, -1], out)
    source = file.write(tmp_path / "m.tflite", given, out)
    change = run(TfliteSparseWeights(), source, tmp_path / "out.tflite", context)
    assert change.changed, change.why
    assert len(change.details["weights"]) == 1
    model = packing.load((tmp_path / "out.tflite").read_bytes(), "out")
    named = [tensor.name for tensor in model.subgraphs[0].tensors]
    assert len(set(named)) == len(named)  # quantisers ask for it
    assert kinds(tmp_path / "out.tflite") == {"FULLY_CONNECTED": 2, "RESHAPE": 2}


def test_weight_that_another_operator_reads_stays(tmp_path: Path, context: PassContext) -> None:
    file = File()
    given = file.tensor("x", [1, 256])
    middle = file.dense(given, blocky(256, 256, 4, 0.05))
    out = file.tensor("z", [256, 256])
    file.operator("ADD", "AddOptions", [middle, file.graph.operators[0].inputs[1]], out)
    source = file.write(tmp_path / "m.tflite", given, out)
    change = run(TfliteSparseWeights(), source, tmp_path / "out.tflite", context)
    assert change.why == "declined: 1 also read by ADD, which cannot read it sparse"


def quantised(path: Path, columns: int, zero: int = 0, *, dynamic: bool = False, full_row: bool = False) -> Path:
    """One int8 layer of 64 rows with a scale a row; float in and out where `dynamic`."""
    real = blocky(64, columns, 16, 0.1)
    real[:full_row] = 1
    scale = np.maximum(np.abs(real).max(axis=1), 1e-6) / 127
    weight = np.rint(real / scale[:, None]).astype(np.int8)
    file = File()
    kind, unit = (np.float32, None) if dynamic else (np.int8, 0.02)
    given = file.tensor("x", [1, columns], dtype=kind, scale=unit)
    stored = file.tensor("w", [64, columns], weight, scale=scale, zero=zero)
    bias = (np.arange(64) % 7).astype(np.float32 if dynamic else np.int32)
    biased = file.tensor("b", [64], bias, scale=None if dynamic else scale * np.float32(0.02))
    out = file.tensor("y", [1, 64], dtype=kind, scale=None if dynamic else 0.05)
    file.operator("FULLY_CONNECTED", "FullyConnectedOptions", [given, stored, biased], out)
    return file.write(path, given, out)


@pytest.mark.parametrize("dynamic", [False, True], ids=["integer", "dynamic"])
def test_int8_in_blocks_of_sixteen(tmp_path: Path, context: PassContext, dynamic: bool) -> None:
    source, out = quantised(tmp_path / "m.tflite", 4096, dynamic=dynamic), tmp_path / "out.tflite"
    here = PassContext(feeds(4096), context.log, tmp_path)
    step = TfliteSparseWeights(resolver="builtin_without_default_delegates")
    change = run(step, source, out, here)
    assert change.changed, change.why
    assert change.details["weights"][0]["form"] == "kernel"
    assert change.details["weights"][0]["block"] == 16
    model = packing.load(out.read_bytes(), "out")
    versions = [c.version for c in model.operatorCodes if c.builtinCode == schema.BuiltinOperator.FULLY_CONNECTED]
    assert max(versions) == (8 if dynamic else 12)  # below 12 tflite-runtime 2.14 takes the file and answers zeros
    # XNNPACK's own int8 kernels are faster than the sparse one, and it does not take an int8 weight from DENSIFY.
    declined = run(TfliteSparseWeights(), source, tmp_path / "x.tflite", here)
    assert declined.why.startswith("declined: 1 the sparse kernel would gain less than 1.1x, and XNNPACK does not load")


@pytest.mark.parametrize(("columns", "full_row"), [(8192, False), (4096, True)])
def test_rows_too_long_for_the_kernel(tmp_path: Path, context: PassContext, columns: int, full_row: bool) -> None:
    """LiteRT numbers and counts the blocks of a row in bytes here and overflows silently.

    8192 columns are 512 blocks, and a row without zeros in 4096 columns has 256.
    """
    source = quantised(tmp_path / "m.tflite", columns, dynamic=True, full_row=full_row)
    here = PassContext(feeds(columns), context.log, tmp_path)
    change = run(TfliteSparseWeights(minimum_gain=0), source, tmp_path / "out.tflite", here)
    assert not change.changed
    assert "numbers blocks in bytes" in change.why


def test_zeros_that_are_not_stored_as_zeros(tmp_path: Path, context: PassContext) -> None:
    source = quantised(tmp_path / "m.tflite", 256, zero=3)
    change = run(TfliteSparseWeights(), source, tmp_path / "out.tflite", context)
    assert change.why == "declined: 1 with a zero point that is not 0, so that zeros are not stored as zeros"


def test_convolutions_are_stored_sparse(tmp_path: Path, context: PassContext) -> None:
    file = File()
    given = file.tensor("x", [1, 6, 6, 16])
    weight = blocky(32, 3 * 3 * 16, 1, 0.3).reshape(32, 3, 3, 16)
    out = file.tensor("y", [1, 4, 4, 32])
    inputs = [given, file.tensor("w", list(weight.shape), weight), file.tensor("b", [32], np.ones(32, np.float32))]
    file.operator("CONV_2D", "Conv2DOptions", inputs, out, padding=1, strideH=1, strideW=1)
    source = file.write(tmp_path / "m.tflite", given, out)
    here = PassContext([{"x": RNG.normal(size=(1, 6, 6, 16)).astype(np.float32)}], context.log, tmp_path)
    change = run(TfliteSparseWeights(), source, tmp_path / "out.tflite", here)
    assert change.changed, change.why
    assert kinds(tmp_path / "out.tflite") == {"CONV_2D": 1, "DENSIFY": 1}


@pytest.mark.parametrize(("padding", "keep"), [(1, 0.1), (1, 0.5), (0, 0.1)])
def test_xnnpacks_sparse_inference_is_not_switched_on(
    tmp_path: Path, context: PassContext, padding: int, keep: float
) -> None:
    """On Arm it turns the axes of what a MEAN keeps (qemu, cortex-a76: [1, 64, 1, 1] for [1, 1, 1, 64])."""
    file = File()
    given = file.tensor("x", [1, 33, 33, 3])
    size = 16 if padding else 17
    middle, out = file.tensor("m", [1, size, size, 32]), file.tensor("y", [1, size, size, 64])
    for source, made, weight, stride in (
        (given, middle, RNG.normal(size=(32, 3, 3, 3)).astype(np.float32), 2),
        (middle, out, blocky(64, 32, 1, keep).reshape(64, 1, 1, 32), 1),
    ):
        bias = file.tensor("b", [weight.shape[0]], np.zeros(weight.shape[0], np.float32))
        inputs = [source, file.tensor("w", list(weight.shape), weight), bias]
        how = {"padding": padding, "strideH": stride, "strideW": stride}
        file.operator("CONV_2D", "Conv2DOptions", inputs, made, **how)
    path = file.write(tmp_path / "m.tflite", given, out)
    here = PassContext([{"x": RNG.normal(size=(1, 33, 33, 3)).astype(np.float32)}], context.log, tmp_path)
    change = run(TfliteSparseWeights(), path, tmp_path / "out.tflite", here)
    switched = padding == 1 and keep < 1 / 3
    assert change.changed is not switched
    assert ("switch XNNPACK's sparse inference on" in change.why) is switched


def test_packing_keeps_what_is_read_and_aligns_it(tmp_path: Path) -> None:
    content = mlp(tmp_path / "m.tflite").read_bytes()
    model = packing.load(content, "m")
    unread = schema.BufferT()
    unread.data = np.zeros(100_000, np.uint8)
    model.buffers.append(unread)
    made = packing.save(model, "m")
    assert len(made) < len(content) + 500
    read = schema.Model.GetRootAs(made, 0)
    for index in range(read.BuffersLength()):
        data = read.Buffers(index).DataAsNumpy()
        if isinstance(data, np.ndarray) and data.size:
            at = data.__array_interface__["data"][0] - np.frombuffer(made, np.uint8).__array_interface__["data"][0]
            assert at % 16 == 0
    assert packing.save(packing.load(made, "m"), "m") == made


@pytest.mark.parametrize("how", HARM)
def test_a_damaged_file_is_one_line(tmp_path: Path, context: PassContext, how: str) -> None:
    source = mlp(tmp_path / "m.tflite", width=64)
    damaged(source, how)
    with pytest.raises(ArtifactError, match=r"m\.tflite") as caught:
        run(TfliteSparseWeights(), source, tmp_path / "out.tflite", context)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.tflite").exists()


def test_litert_compiled_models_read_it_too(tmp_path: Path, context: PassContext) -> None:
    """LiteRT's newer interface, which delegates by itself."""
    compiled = pytest.importorskip("ai_edge_litert.compiled_model")
    source, out = mlp(tmp_path / "m.tflite"), tmp_path / "out.tflite"
    assert run(TfliteSparseWeights(), source, out, context).changed
    answers = []
    for path in (source, out):
        model = compiled.CompiledModel.from_file(str(path))
        given, made = model.create_input_buffers(0), model.create_output_buffers(0)
        given[0].write(context.calibration[0]["x"].ravel())
        model.run_by_index(0, given, made)
        answers.append(made[0].read(256, np.float32))
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    assert np.abs(answers[0]).max() > 0.1


def test_nothing_is_written_without_inputs_to_prove_it_on(tmp_path: Path, context: PassContext) -> None:
    here = PassContext([], context.log, tmp_path)
    with pytest.raises(DataError, match="no inputs"):
        run(TfliteSparseWeights(), mlp(tmp_path / "m.tflite"), tmp_path / "out.tflite", here)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "m.tflite"]


def test_expected_gains_against_committed_readings() -> None:
    """tools/bench_tflite's stacks in blocks: the rule is within a factor of 2, and slows no stack down that it takes."""
    path = Path(__file__).parents[1] / "docs" / "results" / "bench-tflite.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    compared = 0
    for row in rows:
        if row["by_rule"]["xnnpack"]["kernel"]:
            assert row["gain"]["xnnpack"] >= 1, row["stack"]
        if "x" not in row["pattern"]:
            continue
        columns, inner = (int(size) for size in reversed(row["stack"].split("x")))
        itemsize, block = 4 if row["kind"] == "float" else 1, int(row["pattern"].split("x")[1])
        count = columns * inner
        dense = sparse = 0.0
        for layer in range(row["layers"]):
            size = (inner, columns) if layer % 2 == 0 else (columns, inner)
            shape = Layer(row["kind"], *size, row["positions"], row["layers"] * count * itemsize)
            kept = round(count * (1 - row["zeros"]))
            dense += shape.dense_us("xnnpack")
            sparse += shape.sparse_us(block, kept, kept * itemsize + kept // block)
        assert 0.5 < dense / sparse / row["gain"]["xnnpack"] < 2, (row["stack"], row["kind"], row["zeros"])
        compared += 1
    assert compared >= 24


def test_threads_share_what_the_kernels_let_them_share() -> None:
    """At one position two threads halve the dense layer and leave the sparse one as it is."""
    one, two = (Layer("float", 1024, 1024, 1, 1 << 25, threads) for threads in (1, 2))
    assert two.dense_us("xnnpack") == pytest.approx(one.dense_us("xnnpack") / 2)
    assert two.sparse_us(4, 10_000, 50_000) == one.sparse_us(4, 10_000, 50_000)
    many, shared = (Layer("float", 1024, 1024, 16, 1 << 25, threads) for threads in (1, 2))
    assert shared.sparse_us(4, 10_000, 50_000) == pytest.approx(many.sparse_us(4, 10_000, 50_000) / 2, rel=0.1)
