"""Encoder-decoders, speech, experts and vision: steps that shrink shapes work and round-trip, or refuse in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_prune_structured import context, feeds, wrap

import edgeredux
from edgeredux import loading, shapes
from edgeredux.batching import by_length
from edgeredux.errors import ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.channels import Channels
from edgeredux.pruning.depth import Depth
from edgeredux.pruning.structured import Structured
from edgeredux.pruning.student import Student
from edgeredux.pruning.width import Width
from edgeredux.seams import Feed

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
STEPS: dict[str, Any] = {
    "structured": Structured(ffn=0.5, heads=0.5),
    "width": Width(share=0.25),
    "depth": Depth(share=0.5),
    "channels": Channels(share=0.25),
}
IN_ONE_FILE, BESIDE = "stock", "shapes"  # what a folder needs to be loaded: stock transformers, or our shapes too
# What each step does to each model; a pattern is what a refusal says.
EXPECTED: dict[str, dict[str, str]] = {
    "t5": {"structured": IN_ONE_FILE, "width": BESIDE, "depth": IN_ONE_FILE, "channels": BESIDE},
    "whisper": {"structured": BESIDE, "width": BESIDE, "depth": IN_ONE_FILE, "channels": BESIDE},
    "mixtral": {
        "structured": "has no ffn group of a known structure; set ffn: 0",
        "width": r"must stay: model.layers.0.mlp.gate is no Linear or convolution module. Supported: transformers",
        "depth": IN_ONE_FILE,
        "channels": "has no channels that can be removed: model.layers.0",
    },
    "vit": {"structured": IN_ONE_FILE, "width": IN_ONE_FILE, "depth": IN_ONE_FILE, "channels": BESIDE},
    "resnet": {
        "structured": "has no ffn group of a known structure; set ffn: 0",
        "width": "has no one hidden_size. Supported: transformers models .* others take step channels",
        "depth": "has no stack of layers that its config counts",
        "channels": BESIDE,
    },
    "distilbert": {"structured": BESIDE, "width": BESIDE, "depth": IN_ONE_FILE, "channels": BESIDE},
    "modernbert": {"structured": BESIDE, "width": BESIDE, "depth": IN_ONE_FILE, "channels": BESIDE},
    "masked": {"structured": BESIDE, "width": BESIDE, "depth": IN_ONE_FILE, "channels": BESIDE},
}


def make(kind: str) -> Model:
    import transformers as tf

    ids = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    names: tuple[str, ...] = ("input_ids", "attention_mask")
    task, output = "generic", "logits"
    torch.manual_seed(0)
    module: torch.nn.Module
    if kind == "t5":
        config = tf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, **ids)
        module, names = tf.T5ForConditionalGeneration(config), (*names, "decoder_input_ids")
    elif kind == "whisper":
        sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
                 (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
        sizes = {"d_model": 32, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32}
        config = tf.WhisperConfig(**sizes, **sides, **ids, decoder_start_token_id=1)
        module, names = tf.WhisperForConditionalGeneration(config), ("input_features", "decoder_input_ids")
    elif kind == "mixtral":
        config = tf.MixtralConfig(**SMALL, **ids, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
        module, task = tf.MixtralForCausalLM(config), "causal-lm"
    elif kind == "vit":
        config = tf.ViTConfig(**SMALL, image_size=32, patch_size=16, num_labels=3)
        module, names, task = tf.ViTForImageClassification(config), ("pixel_values",), "classification"
    elif kind == "resnet":
        config = tf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], num_labels=3, layer_type="basic"
        )
        module, names, task = tf.ResNetForImageClassification(config), ("pixel_values",), "classification"
    elif kind == "distilbert":
        config = tf.DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=4, vocab_size=50)
        module, task, output = tf.DistilBertModel(config), "embedding", "last_hidden_state"
    elif kind == "modernbert":
        config = tf.ModernBertConfig(**SMALL, **ids, cls_token_id=1, sep_token_id=2)
        module, task, output = tf.ModernBertModel(config), "embedding", "last_hidden_state"
    else:
        module = tf.BertForMaskedLM(tf.BertConfig(**SMALL, vocab_size=50))
    axes: dict[str, Any] = {name: ("batch", "sequence" if name.endswith(("ids", "mask")) else None) for name in names}
    axes[output] = ("batch", None)
    return dataclasses.replace(wrap(module.eval(), names, task), output_names=(output,), axes=axes)


def data(model: Model, count: int = 17) -> list[Feed]:
    random = np.random.default_rng(0)
    made = []
    for feed in feeds(count):
        more = {
            "pixel_values": random.standard_normal((4, 3, 32, 32)).astype(np.float32),
            "input_features": random.standard_normal((4, 8, 32)).astype(np.float32),
            "decoder_input_ids": random.integers(1, 50, (4, 9)),
        }
        made.append({name: (feed | more)[name] for name in model.input_names})
    return made


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("kind", EXPECTED)
def test_each_step_works_or_refuses_in_one_line(kind: str, name: str, tmp_path: Path) -> None:
    model, step, expected = make(kind), STEPS[name], EXPECTED[kind][name]
    batches = data(model)
    if expected not in (IN_ONE_FILE, BESIDE):
        with pytest.raises(ModelError, match=expected) as problem:
            step.apply(model, context(model, tmp_path, batches))
        assert "\n" not in str(problem.value)
        return
    step.check(model)
    reduced, change = step.apply(model, context(model, tmp_path, batches))
    assert change.changed
    assert reduced.parameters() < model.parameters()
    folder = tmp_path / "saved"
    loading.save(reduced, folder)
    output = model.output_names[0]
    made = reduced.run(batches[0])[output]
    assert np.isfinite(made).all()
    np.testing.assert_array_equal(made, loading.load_reduced(folder, model).run(batches[0])[output])
    assert (folder / shapes.SHAPES_FILE).exists() == (expected == BESIDE)


def test_streams_of_encoder_and_decoder_choose_for_themselves(tmp_path: Path) -> None:
    model = make("whisper")
    _, change = STEPS["width"].apply(model, context(model, tmp_path, data(model)))
    first, second = change.details["kept"].values()
    assert len(first) == len(second) == 24
    assert first != second
    model = make("t5")  # one embedding for both sides: one stream
    _, change = STEPS["width"].apply(model, context(model, tmp_path, data(model)))
    assert [len(kept) for kept in change.details["kept"].values()] == [24]


@pytest.mark.parametrize("importance", ["influence", "output"])
def test_first_layers_that_are_built_otherwise_stay(importance: Any, tmp_path: Path) -> None:
    model = make("t5")
    with torch.no_grad():  # the first blocks do nothing: they would go first
        for name, value in model.module.named_parameters():
            if "block.0" in name and name.endswith(("o.weight", "wo.weight")):
                value.zero_()
    _, change = Depth(share=0.5, importance=importance).apply(model, context(model, tmp_path, data(model, 2)))
    assert change.details["removed"] == {"encoder.block": [1], "decoder.block": [1]}
    for step in (Depth(layers=(0,)), Student(layers=(1,))):
        with pytest.raises(RecipeError, match="built otherwise than the last"):
            step.check(make("modernbert"))


def test_heads_of_a_model_with_experts_go_alone(tmp_path: Path) -> None:
    model = make("mixtral")
    reduced, change = Structured(ffn=0, heads=0.5).apply(model, context(model, tmp_path, data(model)))
    assert change.details["removed"] == {"ffn": 0, "heads": 2}
    assert reduced.module.config.num_key_value_heads == 1


def test_encoder_decoder_in_one_line_with_decoder_inputs_of_any_length() -> None:
    model = make("t5")
    batches = data(model, 6)
    for batch in batches[::2]:  # as long as the encoder's inputs, but the mask is not about them
        batch["decoder_input_ids"] = np.random.default_rng(1).integers(1, 50, (4, 12))
    joined = by_length(model, batches)
    assert sorted({batch["decoder_input_ids"].shape[1] for batch in joined}) == [9, 12]
    assert sum(len(batch["input_ids"]) for batch in joined) == 24
    pruned = edgeredux.prune(model.module, pattern="width", zeros=0.5, data=batches)
    assert pruned.shared.weight.shape == (50, 16)
