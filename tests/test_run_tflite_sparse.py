"""A recipe with sparse TFLite weights, from file to installed bundle, and who must not be given such a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli

pytest.importorskip("ai_edge_litert.schema_py_generated", reason="LiteRT is not installed")

from tflite_files import mlp

RECIPE = """
edgeredux: 1
name: sparse
model: {model}
threads: 1
data: {{source: python-docs, calibration: 8, evaluation: 16}}
artifacts:
  plain: {{format: tflite}}
  sparse: {{format: tflite, passes: [tflite_sparse_weights]}}
targets:
  {target}:
    {runner}: {{dense: plain, reduced: sparse, budget: {{size_ratio: 0.2}}}}
measure: {{repeats: 5, warmup: 1, threads: 1}}
"""
TARGET = """
name: board
description: LiteRT alone
runtimes: [{runner: litert, format: tflite}]
"""


def write(folder: Path, target: str, runner: str) -> Path:
    path = folder / "recipe.yaml"
    text = RECIPE.format(model=json.dumps(str(mlp(folder / "m.tflite"))), target=target, runner=runner)
    path.write_text(text, encoding="utf-8")
    return path


def test_from_file_to_installed_bundle(cli: Cli, tmp_path: Path) -> None:
    recipe = write(tmp_path, "board", "litert")
    board = tmp_path / "board.yaml"
    board.write_text(TARGET, encoding="utf-8")
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("  board:", f"  {board}:"), encoding="utf-8")
    done = cli("run", recipe, "--out", "out")
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    (line,) = (step for step in report["steps"] if step["name"] == "sparse: tflite_sparse_weights")
    assert line["changed"]
    assert line["why"] == "2 of 2 weights to sparse kernels"
    assert line["details"]["weights"][0]["block"] == 4
    assert line["details"]["resolvers"]["passed"]
    assert line["bytes_after"] < 0.2 * line["bytes_before"]
    assert "2 of 2 weights to sparse kernels" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    placed = report["targets"][0]["placement"]["reduced"]
    assert placed["built-in"] == 2  # XNNPACK left the guarded operators alone
    installed = cli("deploy", "out", "--target", board, "--to", "installed")
    assert installed.returncode == 0, installed.stderr


def test_a_compiler_that_reads_dense_weights_is_not_given_sparse_ones(cli: Cli, tmp_path: Path) -> None:
    done = cli("run", write(tmp_path, "ethos-u85-512", "vela"), "--out", "out")
    assert done.returncode == 2
    assert "what pass tflite_sparse_weights writes can only be run by litert" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_pass_on_one_file(cli: Cli, tmp_path: Path) -> None:
    source = mlp(tmp_path / "m.tflite")
    done = cli("passes", "run", "tflite_sparse_weights", source, "out.tflite", "--set", "resolver=xnnpak")
    assert done.returncode == 2
    assert "builtin_without_default_delegates" in done.stderr
    done = cli("passes", "run", "tflite_sparse_weights", source, "out.tflite", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["details"]["bytes_after"] == (tmp_path / "out.tflite").stat().st_size
    assert "tflite_sparse_weights" in cli("passes", "list").stdout
