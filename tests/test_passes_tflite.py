"""TFLite passes on small real files: where they fire, where they decline, the same bytes in every process."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="LiteRT is not installed")
pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")

from edgeredux import isolated  # noqa: E402
from edgeredux.errors import ArtifactError, DataError, RecipeError  # noqa: E402
from edgeredux.execute import execute  # noqa: E402
from edgeredux.passes.tflite import packing  # noqa: E402
from edgeredux.passes.tflite.files import Contents  # noqa: E402
from edgeredux.passes.tflite.quantize import TfliteInt8Dynamic, TfliteInt8Static  # noqa: E402
from edgeredux.passes.tflite.squares import split_squares  # noqa: E402
from edgeredux.seams import PassContext  # noqa: E402

RNG = np.random.default_rng(3)
Array = np.ndarray[Any, Any]
OPERATORS = schema.BuiltinOperator


def build(path: Path, *, low: float | None = None, squares: bool = False) -> Path:
    """y = FULLY_CONNECTED(x [1, 32], w [64, 32]) with a signature; then + low, or the squared difference to x's bias."""
    import flatbuffers

    model = schema.ModelT()
    model.version, model.description, model.buffers = 3, b"test", [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.name = [], [], b"main"
    model.operatorCodes = []

    def tensor(name: str, shape: list[int], data: Array | None = None) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name.encode(), shape, schema.TensorType.FLOAT32, 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.astype(np.float32).tobytes(), np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operator(name: str, options: str, inputs: list[int], out: int) -> None:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(OPERATORS, name)
        code.version = 1
        model.operatorCodes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = len(model.operatorCodes) - 1, inputs, [out]
        made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
        made.builtinOptions = getattr(schema, f"{options}T")()
        graph.operators.append(made)

    x = tensor("x", [1, 32])
    w = tensor("w", [64, 32], RNG.normal(size=(64, 32)))
    b = tensor("b", [64], RNG.normal(size=64))
    y = tensor("y", [1, 64])
    operator("FULLY_CONNECTED", "FullyConnectedOptions", [x, w, b], y)
    if low is not None:
        constant, z = tensor("mask", [1, 64], np.where(np.arange(64) < 60, 0, low)), tensor("z", [1, 64])
        operator("ADD", "AddOptions", [y, constant], z)
        y = z
    if squares:
        z = tensor("z", [1, 64])
        operator("SQUARED_DIFFERENCE", "SquaredDifferenceOptions", [y, b], z)
        y = z
    graph.inputs, graph.outputs = [x], [y]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    signature.inputs, signature.outputs = [schema.TensorMapT()], [schema.TensorMapT()]
    signature.inputs[0].name, signature.inputs[0].tensorIndex = b"x", x
    signature.outputs[0].name, signature.outputs[0].tensorIndex = b"y", y
    model.subgraphs, model.signatureDefs = [graph], [signature]
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def feeds(count: int = 8) -> list[dict[str, Array]]:
    return [{"x": RNG.normal(size=(1, 32)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    return PassContext(feeds(), tmp_path / "log", tmp_path)


def run(step: Any, source: Path, out: Path, context: PassContext, **environment: str) -> Any:
    """As the pass list does it: in a child, where the quantiser may print."""
    arguments = {"step": step, "source": source, "out": out, "context": context}
    answer = isolated.call(
        "edgeredux.rewrite:run_pass", arguments, log=context.log, what="test", environment=environment
    )
    return answer["change"]


def cosine(a: Path, b: Path, context: PassContext) -> float:
    """Of all outputs, on the calibration feeds."""
    given = context.calibration
    x, y = (np.concatenate([item["y"].ravel() for item in execute(path, given, log=context.log)]) for path in (a, b))
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


WIDE = TfliteInt8Static(activation="int16", ranges="minmax", operators={"FULLY_CONNECTED": "int8"})
# The moving average of the ranges cuts what is rare off, so that its bound is lower than that of the extremes.
STEPS = {
    "dynamic": (TfliteInt8Dynamic(), 0.999),
    "average": (TfliteInt8Static(), 0.95),
    "extremes": (TfliteInt8Static(ranges="minmax"), 0.999),
    "int16": (TfliteInt8Static(activation="int16", ranges="minmax"), 0.9999),
}


@pytest.mark.parametrize("name", STEPS)
def test_weights_become_integers(tmp_path: Path, context: PassContext, name: str) -> None:
    source, out = build(tmp_path / "m.tflite"), tmp_path / "out.tflite"
    step, least = STEPS[name]
    change = run(step, source, out, context)
    assert change.changed, change.why
    assert change.details["weights"] >= 1
    assert Contents(out.read_bytes(), "out").integer_constants() >= 1
    assert cosine(source, out, context) > least


def test_the_same_bytes_in_every_process(tmp_path: Path, context: PassContext) -> None:
    source = build(tmp_path / "m.tflite", squares=True)
    hashes = set()
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.tflite"
        assert run(WIDE, source, out, context, PYTHONHASHSEED=seed).changed
        hashes.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_what_is_quantised_is_left_alone(tmp_path: Path, context: PassContext) -> None:
    source, once = build(tmp_path / "m.tflite"), tmp_path / "once.tflite"
    assert run(TfliteInt8Dynamic(), source, once, context).changed
    again = run(TfliteInt8Dynamic(), once, tmp_path / "twice.tflite", context)
    assert not again.changed
    assert again.why.startswith("declined: ")
    assert not (tmp_path / "twice.tflite").exists()


def test_a_file_without_signature_is_calibrated_by_its_tensors_names(tmp_path: Path, context: PassContext) -> None:
    model = schema.ModelT.InitFromPackedBuf(build(tmp_path / "in.tflite").read_bytes(), 0)
    model.signatureDefs = None
    (tmp_path / "in.tflite").write_bytes(packing.save(model, "in.tflite"))
    change = run(TfliteInt8Static(), tmp_path / "in.tflite", tmp_path / "out.tflite", context)
    assert change.changed, change.why
    assert cosine(tmp_path / "in.tflite", tmp_path / "out.tflite", context) > 0.99


def test_a_mask_that_takes_the_range_is_refused(tmp_path: Path, context: PassContext) -> None:
    change = run(TfliteInt8Static(), build(tmp_path / "m.tflite", low=-3e38), tmp_path / "out.tflite", context)
    assert not change.changed
    assert "mask is below -1e30" in change.why
    assert run(TfliteInt8Static(), build(tmp_path / "m.tflite", low=-40), tmp_path / "out.tflite", context).changed


def test_squares_are_split_exactly(tmp_path: Path, context: PassContext) -> None:
    source, plain = build(tmp_path / "m.tflite", squares=True), build(tmp_path / "p.tflite")
    content, found = split_squares(source.read_bytes())
    assert found == 1
    (tmp_path / "split.tflite").write_bytes(content)
    given = feeds(3)
    before, after = (execute(path, given, log=context.log) for path in (source, tmp_path / "split.tflite"))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a["y"], b["y"], rtol=1e-6)
    assert split_squares(plain.read_bytes()) == (plain.read_bytes(), 0)


@pytest.mark.parametrize("damage", ["empty", "junk", "cut"])
@pytest.mark.parametrize("step", [TfliteInt8Dynamic(), TfliteInt8Static()], ids=["dynamic", "static"])
def test_a_damaged_file_is_one_line(tmp_path: Path, context: PassContext, step: Any, damage: str) -> None:
    source = build(tmp_path / "m.tflite")
    data = source.read_bytes()
    source.write_bytes({"empty": b"", "junk": b"\xff" * 500, "cut": data[: len(data) // 2]}[damage])
    with pytest.raises(ArtifactError, match=r"m\.tflite") as caught:
        run(step, source, tmp_path / "out.tflite", context)
    assert "\n" not in str(caught.value)


def test_wrong_feeds_and_names_say_what_is_allowed(tmp_path: Path, context: PassContext) -> None:
    import dataclasses

    source, out = build(tmp_path / "m.tflite"), tmp_path / "out.tflite"
    for calibration, said in (
        ([], "no calibration feeds"),
        ([{"z": np.zeros((1, 32), np.float32)}], "no input 'x'"),
        ([{"x": np.zeros((2, 32), np.float32)}], r"is \(2, 32\), the file wants \(1, 32\)"),
    ):
        with pytest.raises(DataError, match=said):
            run(TfliteInt8Static(), source, out, dataclasses.replace(context, calibration=calibration))
    with pytest.raises(RecipeError, match="did you mean 'GELU'"):
        run(TfliteInt8Static(operators={"GELUX": "int8"}), source, out, context)
