"""The pass list: kept files, history, parity after every pass, rolling back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeredux.artifact import Artifact, Change, Format
from edgeredux.errors import ArtifactError, InternalError
from edgeredux.passes.onnx.fold import Fold
from edgeredux.passes.onnx.int8_dynamic import Int8Dynamic
from edgeredux.rewrite import rewrite
from edgeredux.seams import Feed, PassContext, Tolerance


@dataclasses.dataclass(frozen=True)
class Spoil:
    """A pass that does what `how` says to the weight "w"."""

    how: str
    format: Format = "onnx"
    tolerance: Tolerance = dataclasses.field(default_factory=lambda: Tolerance("exact", atol=1e-5))

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        model = ir.load(source)
        if self.how == "crash":
            import os

            os.abort()
        if self.how == "litter":
            (source.parent / f"{source.stem}-inferred.onnx").write_bytes(b"")
        if self.how == "change":
            w = model.graph.initializers["w"]
            assert w.const_value is not None
            w.const_value = ir.tensor(w.const_value.numpy() + np.float32(0.5), name="w")
        if self.how == "malform":
            next(iter(model.graph)).op_type = "NoSuchOperator"
        if self.how != "lie":
            ir.save(model, out)
        return Change("spoil", True, "spoiled")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Artifact, PassContext, list[Feed]]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the child has to find Spoil
    rng = np.random.default_rng(0)
    w = numpy_helper.from_array(rng.normal(size=(16, 24)).astype(np.float32), "w")
    two = numpy_helper.from_array(np.float32([2.0]), "two")
    nodes = [
        helper.make_node("Mul", ["w", "two"], ["w2"]),
        helper.make_node("MatMul", ["x", "w2"], ["y0"]),
        helper.make_node("Identity", ["y0"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 24])],
        [w, two],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    base = tmp_path / "base"
    base.mkdir()
    onnx.save(model, base / "m.onnx")
    context = PassContext([], tmp_path / "log", tmp_path / "scratch")
    context.scratch.mkdir()
    (tmp_path / "kept").mkdir()
    feeds: list[Feed] = [{"x": rng.normal(size=(n, 16)).astype(np.float32)} for n in (1, 3)]
    artifact = dataclasses.replace(Artifact.of(base / "m.onnx", "m", "reduced"), parity={"passed": True})
    return artifact, context, feeds


def test_every_pass_leaves_its_file_and_its_line(
    made: tuple[Artifact, PassContext, list[Feed]], tmp_path: Path
) -> None:
    artifact, context, feeds = made
    told: list[str] = []
    answer = rewrite(
        artifact,
        [("fold", Fold()), ("int8_dynamic", Int8Dynamic()), ("again", Fold())],
        context,
        feeds,
        tmp_path / "kept",
        lambda text, done, total: told.append(text),
    )
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["01-fold.onnx", "02-int8_dynamic.onnx"]
    assert [change.step for change in answer.history] == ["fold", "int8_dynamic", "again"]
    fold, int8, again = answer.history
    assert fold.changed
    assert int8.changed
    assert not again.changed
    assert "nothing to fold" in again.why
    assert fold.details["file"] == "01-fold.onnx"
    assert fold.details["operators_before"] == 3
    assert fold.details["operators_after"] == 1
    # One row of 16 x 24: fold takes away what is constant, int8_dynamic keeps the products.
    assert fold.details["macs_before"] == fold.details["macs_after"] == int8.details["macs_after"] == 16 * 24
    assert fold.details["parity"]["passed"]
    assert int8.details["bytes_before"] == (tmp_path / "kept/01-fold.onnx").stat().st_size
    assert int8.details["bytes_after"] == answer.size_bytes == answer.path.stat().st_size
    assert answer.path.name == "02-int8_dynamic.onnx"
    assert answer.parity["passed"] is True
    assert answer.parity["worst"]["pass"] == "int8_dynamic"
    assert set(answer.parity["passes"]) == {"fold", "int8_dynamic"}
    assert told[:2] == ["pass 1/3 fold", "pass 2/3 int8_dynamic"]
    assert [path.name for path in artifact.path.parent.iterdir()] == ["m.onnx"]


def test_no_passes_leave_the_artifact(made: tuple[Artifact, PassContext, list[Feed]], tmp_path: Path) -> None:
    artifact, context, feeds = made
    assert rewrite(artifact, [], context, feeds, tmp_path / "kept") is artifact


@pytest.mark.parametrize(("how", "why"), [("change", "the function changed"), ("malform", "malformed")])
def test_a_wrong_pass_is_rolled_back(
    made: tuple[Artifact, PassContext, list[Feed]], tmp_path: Path, how: str, why: str
) -> None:
    artifact, context, feeds = made
    answer = rewrite(artifact, [("spoil", Spoil(how)), ("fold", Fold())], context, feeds, tmp_path / "kept")
    bad, fold = answer.history
    assert not bad.changed
    assert bad.why.startswith("rolled back: ")
    assert why in bad.why
    assert bad.details["rolled_back"] is True
    assert bad.details["bytes_after"] == bad.details["bytes_before"] == artifact.size_bytes
    assert fold.changed
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["02-fold.onnx"]


def test_a_pass_that_crashes_is_one_line(made: tuple[Artifact, PassContext, list[Feed]], tmp_path: Path) -> None:
    artifact, context, feeds = made
    with pytest.raises(ArtifactError, match=r"pass spoil on m\.onnx: the process ended with SIGABRT"):
        rewrite(artifact, [("spoil", Spoil("crash"))], context, feeds, tmp_path / "kept")


@pytest.mark.parametrize(("how", "why"), [("lie", "wrote no file"), ("litter", "m-inferred.onnx beside")])
def test_a_pass_that_breaks_its_contract(
    made: tuple[Artifact, PassContext, list[Feed]], tmp_path: Path, how: str, why: str
) -> None:
    artifact, context, feeds = made
    with pytest.raises(InternalError, match=why):
        rewrite(artifact, [("spoil", Spoil(how))], context, feeds, tmp_path / "kept")


def test_a_damaged_file_is_one_line(made: tuple[Artifact, PassContext, list[Feed]], tmp_path: Path) -> None:
    _, context, feeds = made
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x0a\x12\x04junk" * 30)
    with pytest.raises(ArtifactError) as caught:
        rewrite(Artifact.of(broken, "b", "reduced"), [("fold", Fold())], context, feeds, tmp_path / "kept")
    assert "\n" not in str(caught.value)
