"""Decoders that cannot work are refused before any work: one line that says what, where and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import Cli
from test_prune_vocabulary import decoder

import edgeredux
from edgeredux import loading
from edgeredux.data import python_docs
from edgeredux.errors import EdgereduxError

RECIPE = """
edgeredux: 1
name: words
model: {model}
data: {{source: {words}, evaluation: 24, calibration: 16, training: 40}}
reduce: [structured: {{ffn: 0.5, heads: 0}}]
artifacts: {{float: {{format: onnx, cache: true}}}}
targets: {{host-cpu: {{onnxruntime: {{dense: float, reduced: float, budget: {{size_ratio: 0.99}}}}}}}}
"""
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with its tokenizer."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    loading.save(decoder("byte BPE"), folder / "model")
    (folder / "words.txt").write_text("\n".join(python_docs()[:300]), encoding="utf-8")
    return folder


def of(whole: Path, place: Path, kind: str = "", **changes: Any) -> Path:
    """A recipe for that tokenizer with another model, or with other words in its config."""
    import shutil

    model = place / "model"
    shutil.copytree(whole / "model", model)
    said = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if kind:
        config = transformers.AutoConfig.for_model(kind, **{**SIZES, "vocab_size": said["vocab_size"], **changes})
        module: Any = transformers.AutoModelForCausalLM.from_config(config)
        module.save_pretrained(model)
    else:
        (model / "config.json").write_text(json.dumps({**said, **changes}), encoding="utf-8")
    recipe = place / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=json.dumps(str(model)), words=whole / "words.txt"), encoding="utf-8")
    return recipe


def refused(recipe: Path, *settings: str) -> str:
    out = recipe.parent / "out"
    with pytest.raises(EdgereduxError) as said:
        edgeredux.run(str(recipe), out=out, settings=settings)
    assert not out.exists()
    assert "\n" not in str(said.value)
    return str(said.value)


def test_kv_heads_that_do_not_divide(whole: Path, tmp_path: Path, cli: Cli) -> None:
    recipe = of(whole, tmp_path, num_attention_heads=4, num_key_value_heads=3)
    done = cli("run", recipe, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "num_key_value_heads 3 does not divide num_attention_heads 4" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_vocabulary(whole: Path, tmp_path: Path) -> None:
    assert "they do not belong together" in refused(of(whole, tmp_path, "llama", vocab_size=100))


def test_no_tokenizer(whole: Path, tmp_path: Path) -> None:
    recipe = of(whole, tmp_path)
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    assert "has neither a tokenizer nor example inputs" in refused(recipe)


def test_texts_longer_than_the_context(whole: Path, tmp_path: Path) -> None:
    recipe = of(whole, tmp_path, "llama")
    assert "max_length 65: model tmp sees at most 64 tokens" in refused(recipe, "max_length=65").replace(
        tmp_path.name, "tmp"
    )


@pytest.mark.parametrize(
    ("kind", "changes", "layer"),
    [
        ("lfm2", {"layer_types": ["full_attention", "conv"]}, "layer 1 is of type conv"),
        ("mamba", {}, "layer 0 is of type linear_attention"),
        ("rwkv", {"attention_hidden_size": 32, "context_length": 64}, "layers of RwkvForCausalLM keep no keys"),
    ],
)
def test_layers_without_keys_and_values(
    kind: str, changes: dict[str, Any], layer: str, whole: Path, tmp_path: Path
) -> None:
    said = refused(of(whole, tmp_path, kind, **changes), "reduce=[]")
    assert layer in said
    assert said.endswith("supported: full_attention, sliding_attention")
