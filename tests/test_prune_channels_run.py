"""The step `channels` from a recipe: an arbitrary module with residual and depthwise convolutions, to a verdict."""

from __future__ import annotations

import json
from pathlib import Path

import channel_nets as nets
import numpy as np
import pytest
import torch
from conftest import Cli

from edgeredux import loading
from edgeredux.export.to_onnx import TorchOnnx
from edgeredux.pruning.channels import Channels
from edgeredux.seams import ExportJob, ReduceContext

FACTORY = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import channel_nets, torch

def mobile():
    model = channel_nets.net("mobile")
    return model.module, torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
"""
RECIPE = """
edgeredux: 1
name: mobile
model: my_nets:mobile
threads: 1
data: {source: images.npz, evaluation: 32, calibration: 256, training: 8}
reduce:
  - channels: {share: 0.5}
artifacts:
  onnx-float: {format: onnx, passes: [fold]}
targets:
  host-cpu:
    onnxruntime: {dense: onnx-float, reduced: onnx-float, budget: {size_ratio: 0.9}}
measure: {repeats: 6, warmup: 1}
"""


def test_recipe_to_verdict(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "my_nets.py").write_text(FACTORY, encoding="utf-8")
    (tmp_path / "mobile.yaml").write_text(RECIPE, encoding="utf-8")
    images = np.concatenate([feed["x"] for feed in nets.feeds_of((3, 8, 8), 32, 32)])
    np.savez(tmp_path / "images.npz", x=images)
    done = cli("run", "mobile.yaml", "--out", "out")
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    said = next(line["why"] for line in report["steps"] if line["name"] == "channels")
    assert "33 of 66 channels in 4 groups removed (activation, uniform)" in said


@pytest.mark.parametrize("name", ["mobile", "resnet20", "u-net", "shuffle", "convnext"])
def test_saved_loaded_exported_all_the_same(name: str, tmp_path: Path) -> None:
    model, shape = nets.net(name), nets.NETS[name][1]
    batches = nets.feeds_of(shape)
    context = ReduceContext(teacher=model, calibration=batches, training=batches, seed=0, threads=1, scratch=tmp_path)
    small, _ = Channels(share=0.5).apply(model, context)
    loading.save(small, tmp_path / "saved")
    again = loading.load_reduced(tmp_path / "saved", model)
    np.testing.assert_array_equal(again.run(batches[0])["y"], small.run(batches[0])["y"])
    out = tmp_path / f"{name}.onnx"
    job = ExportJob(
        again, [{"x": feed["x"][:rows]} for feed, rows in zip(batches, (2, 5), strict=False)], out, {}, tmp_path / "log"
    )
    change = TorchOnnx().export(job)
    assert change.details["parity"]["passed"] is True

    import onnxruntime

    session = onnxruntime.InferenceSession(out)
    (made,) = session.run(None, {"x": batches[1]["x"][:3]})
    with torch.no_grad():
        wanted = small.module(torch.from_numpy(batches[1]["x"][:3])).numpy()
    np.testing.assert_allclose(made, wanted, atol=1e-5)
    dense = sum(value.numel() for value in model.module.parameters())
    assert out.stat().st_size < 4 * dense + 40_000
