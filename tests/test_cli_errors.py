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
    lines = done.stderr.splitlines()
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
        ("artifacts.model={format: onnx}", "choose another"),
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


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A tiny BERT as a Hugging Face folder, with a tokenizer of ten words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=10, max_position_embeddings=32, **sizes)).save_pretrained(tmp_path / "encoder")
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "a", "b", "c", "d", "e", "f", "g", "h"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_weights_that_are_not_numbers(cli: Cli, tmp_path: Path, recipe: Path, encoder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(encoder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    weights[name][1, 2] = float("nan")
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    refused(cli, tmp_path, name, "run", recipe, "--model", encoder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "", "a.txt"),
        ("a.csv", "number,other\n1,2\n3,4\n", "text"),
        ("a.jsonl", '{"number": 1}\n', "text"),
        ("a.jsonl", "{broken\n", "a.jsonl"),
        ("a.pdf", "x", ".parquet"),
        ("a.txt", "one line\n", "a.txt"),
    ],
)
def test_data_that_cannot_serve(
    cli: Cli, tmp_path: Path, recipe: Path, encoder: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    refused(cli, tmp_path, words, "run", recipe, "--model", encoder, "--data", tmp_path / name)


def test_corrupted_tflite(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    (tmp_path / "bad.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(range(256)))
    other = (
        "artifacts={lite: {format: tflite, shapes: {batch: 1, sequence: 8}}}",
        "targets={host-cpu: {litert: {dense: lite, reduced: lite}}}",
    )
    settings = [part for override in other for part in ("--set", override)]
    refused(cli, tmp_path, "bad.tflite", "run", recipe, "--model", tmp_path / "bad.tflite", *settings)


HIDDEN = """
import importlib.metadata as metadata
import sys

sys.modules["onnxruntime"] = None
there = metadata.version

def version(name):
    if name == "onnxruntime":
        raise metadata.PackageNotFoundError(name)
    return there(name)

metadata.version = version
"""


def test_a_runtime_that_is_not_installed(cli: Cli, tmp_path: Path, recipe: Path, encoder: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDDEN, encoding="utf-8")  # every child starts it as well
    refused(cli, tmp_path, "pip install onnxruntime", "run", recipe, "--model", encoder)


def test_a_folder_of_something_else(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years", encoding="utf-8")
    done = cli("run", recipe, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert (tmp_path / "out" / "thesis.txt").read_text(encoding="utf-8") == "three years"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("arguments", [("export", "--nothing"), ("nothing",), ("targets", "show"), ("run", "x", "y")])
def test_usage_errors_are_one_line(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "bug" not in done.stderr


def test_usage_error_is_one_line(cli: Cli) -> None:
    done = cli("run")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
