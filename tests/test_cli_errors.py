"""Bad input: exit code 2, one line on stderr, no traceback, nothing left in the output folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli

RECIPE = """
edgeredux: 1
name: tiny
model: {model}
artifacts:
  onnx-float: {{format: onnx, passes: [fold]}}
targets:
  host-cpu:
    onnxruntime: {{dense: onnx-float, reduced: onnx-float, budget: {{size_ratio: 1.1}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=json.dumps("nowhere/at-all.onnx")), encoding="utf-8")
    return path


def refused(cli: Cli, tmp_path: Path, words: str, *arguments: object) -> None:
    done = cli(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith("checking")]
    assert len(lines) == 1, done.stderr
    assert words in lines[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_unknown_recipe(cli: Cli, tmp_path: Path) -> None:
    refused(cli, tmp_path, "quickstart", "run", "quikstart")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("nme=x", "did you mean 'name'"),
        ("reduce=[{distil: {}}]", "did you mean 'distill'"),
        ("artifacts.onnx-float.passes=[foldd]", "did you mean 'fold'"),
        ("targets.host-cpu.onnxruntime.budget.latency=1", "latency_ms"),
        ("targets.host-cpu.onnxruntime.dense=onnx-flat", "onnx-float"),
        ("data.calibration=1", "greater than or equal to 8"),
    ],
)
def test_unknown_keys_and_names(cli: Cli, tmp_path: Path, recipe: Path, override: str, words: str) -> None:
    refused(cli, tmp_path, words, "run", recipe, "--set", override)


def test_unknown_target(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    refused(cli, tmp_path, "host-cpu", "run", recipe, "--target", "host-cup")


def test_missing_model(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    refused(cli, tmp_path, "no such file", "run", recipe)


def test_truncated_onnx(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07\x12\x04abc" * 40)
    refused(cli, tmp_path, "no valid ONNX", "run", recipe, "--model", tmp_path / "bad.onnx")


def test_corrupted_weights(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    refused(cli, tmp_path, "no weight file", "run", recipe, "--model", folder)
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    refused(cli, tmp_path, "truncated or corrupted", "run", recipe, "--model", folder)


def test_usage_error_is_one_line(cli: Cli) -> None:
    done = cli("run")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
