"""Encoders' fused operators are as many after pruning has made heads and widths uneven as they were before."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from tiny_models import bert_config, model_of

from edgeredux.execute import execute
from edgeredux.export.to_onnx import TorchOnnx
from edgeredux.parity import compare
from edgeredux.passes.onnx.fuse import Fuse
from edgeredux.passes.onnx.gelu import Gelu
from edgeredux.passes.onnx.residual_sum import ResidualSum
from edgeredux.pruning.groups import find, remove
from edgeredux.seams import ExportJob, Feed, Pass, PassContext

AXES = ("batch", "sequence")


def feed(batch: int, tokens: int, padding: int) -> Feed:
    mask = np.ones((batch, tokens), np.int64)
    mask[-1, tokens - padding :] = 0
    ids = np.random.default_rng(tokens).integers(0, 50, (batch, tokens))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}


FEEDS = [feed(2, 7, 0), feed(1, 1, 0), feed(3, 16, 5)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A BERT of two layers, dense, and with 2 of 4 heads and 28 of 48 neurons left in one layer, 3 heads in the other."""
    from transformers import BertModel

    made = {}
    for name in ("dense", "uneven"):
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        config = bert_config(hidden_size=32, num_attention_heads=4, intermediate_size=48)
        module = BertModel(config, add_pooling_layer=False).eval()
        if name == "uneven":
            heads = [group for group in find(module) if group.kind == "heads"]
            remove(module, heads[0], torch.tensor([1, 3]))
            remove(module, heads[1], torch.tensor([0, 2, 3]))
            remove(module, next(group for group in find(module) if group.kind == "ffn"), torch.arange(28))
        inputs = ("input_ids", "attention_mask", "token_type_ids")
        model = model_of(module, "embedding", inputs, "last_hidden_state", (*AXES, None))
        out = folder / "model.onnx"
        TorchOnnx().export(ExportJob(model=model, samples=FEEDS, out=out, shapes={}, log=folder / "log.txt"))
        made[name] = out
    return made


def rewritten(source: Path, steps: tuple[Pass, ...], folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime executes of the file after these passes, whose outputs stay the same."""
    context = PassContext(calibration=[], log=folder / "log.txt", scratch=folder)
    path = source
    for number, step in enumerate(steps):
        out = folder / f"{source.parent.name}-{number}.onnx"
        change = step.run(path, out, context)
        assert change.changed, change.why
        path = out
    before, after = (execute(file, FEEDS, log=folder / "log.txt") for file in (source, path))
    found = compare(before, after, steps[-1].tolerance)
    assert found["passed"], found["reason"]
    assert found["max_abs"] < 1e-5  # float32, sums of at most 48 numbers of size 1
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in ir.load(folder / "loaded.onnx").graph)


@pytest.mark.parametrize("norm", ["SkipLayerNormalization", "LayerNormalization"])
def test_as_much_fuses_after_uneven_pruning(norm: str, files: dict[str, Path], tmp_path: Path) -> None:
    # Two ways on purpose: fused with the residual sums, as GPUs like it, and kept apart from them, as CPUs do.
    steps: tuple[Pass, ...] = (Gelu(), Fuse() if norm == "SkipLayerNormalization" else ResidualSum())
    dense, uneven = (rewritten(files[name], steps, tmp_path) for name in ("dense", "uneven"))
    assert uneven == dense
    assert uneven[norm] == (4 if norm == "SkipLayerNormalization" else 5)  # the embeddings' own has no residual
    assert uneven["SkipLayerNormalization"] + uneven["LayerNormalization"] == 5
    assert uneven["BiasGelu"] == 2
    assert uneven["FusedMatMul"] == 2  # the scale of the scores, in their product
    assert not {"Erf", "Gelu", "ReduceMean", "Sqrt"} & set(uneven)
