"""Sparse training from the command line: a classifier's labels reach it, and the folder it leaves holds the zeros."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from conftest import Cli

from edgeredux import loading

WORDS = [f"w{number}" for number in range(40)]
RECIPE = """
edgeredux: 1
name: sparse
model: {model}
max_length: 8
threads: 1
data: {{source: {data}, label: label, evaluation: 32, calibration: 16, training: 400}}
reduce:
  - rigl: {{zeros: 0.8, steps: 120, update_every: 10, learning_rate: 0.01}}
artifacts:
  onnx-float: {{format: onnx}}
targets:
  host-cpu:
    onnxruntime: {{dense: onnx-float, reduced: onnx-float}}
"""


def classifier(folder: Path) -> Path:
    """An untrained BERT over whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, **{w: i + 2 for i, w in enumerate(WORDS)}}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=42, max_position_embeddings=16, num_labels=2, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_rigl_learns_labels_from_a_recipe(cli: Cli, tmp_path: Path) -> None:
    """The label says whether w0 is among the words; the model knew nothing before."""
    generator = torch.Generator().manual_seed(0)
    rows = ["text,label"]
    for number in range(600):
        words = [WORDS[1 + int(place)] for place in torch.randint(0, 39, (5,), generator=generator)]
        words[number % 5] = "w0" if number % 2 else words[number % 5]
        rows.append(f"{' '.join(words)},{number % 2}")
    data = tmp_path / "words.csv"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    recipe = tmp_path / "sparse.yaml"
    model = classifier(tmp_path / "model")
    recipe.write_text(RECIPE.format(model=json.dumps(str(model)), data=json.dumps(str(data))), encoding="utf-8")
    done = cli("reduce", recipe, "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)["steps"][0]
    assert line["name"] == "rigl"
    assert line["quality"]["unit"] == "accuracy"
    assert line["quality"]["value"] > 0.9
    reduced = loading.load(str(tmp_path / "out" / "pytorch"))
    weights = [
        value for name, value in reduced.module.named_parameters() if value.dim() == 2 and "encoder.layer" in name
    ]
    total = sum(value.numel() for value in weights)
    assert 8 * total // 10 <= sum(int((value == 0).sum()) for value in weights) <= 8 * total // 10 + 8
