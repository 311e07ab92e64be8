"""A student of chosen layers: their weights, a config that says so, and stock transformers loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_distill_options import data
from test_prune_structured import context
from tiny_models import bert_config, model_of, tiny_llama, tokens, two_heads

from edgeredux import loading
from edgeredux.distillation.step import Distill
from edgeredux.errors import ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.student import Student
from edgeredux.registry import create

AXES = ("batch", "sequence", None)


def deep_bert() -> Model:
    from transformers import BertModel

    torch.manual_seed(0)
    module = BertModel(bert_config(num_hidden_layers=6), add_pooling_layer=False)
    return model_of(module, "embedding", ("input_ids", "attention_mask"), "last_hidden_state", AXES)


def deep_qwen() -> Model:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=16,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=24,
        vocab_size=50,
        layer_types=["full_attention"] * 6,
        tie_word_embeddings=True,
    )
    return tiny_llama().after(Qwen3ForCausalLM(config).eval(), "")


def deep_gpt2() -> Model:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=6, n_head=2, vocab_size=50, n_positions=16)
    return tiny_llama().after(GPT2LMHeadModel(config).eval(), "")


def layers_of(model: Model) -> Any:
    module = model.module
    return {
        "BertModel": lambda: module.encoder.layer,
        "Qwen3ForCausalLM": lambda: module.model.layers,
        "GPT2LMHeadModel": lambda: module.transformer.h,
    }[type(module).__name__]()


@pytest.mark.parametrize("make", [deep_bert, deep_qwen, deep_gpt2])
def test_the_student_is_what_the_chosen_layers_compute(make: Any, tmp_path: Path) -> None:
    """The dense model with its other layers skipped by hooks gives the same outputs, with and without a cache."""
    teacher = make()
    before = sum(1 for _ in teacher.module.parameters())
    student, change = Student(layers=(0, 2, 5)).apply(teacher, context(teacher, tmp_path))
    assert len(layers_of(student)) == student.module.config.num_hidden_layers == 3
    assert len(layers_of(teacher)) == teacher.module.config.num_hidden_layers == 6
    assert sum(1 for _ in teacher.module.parameters()) == before
    assert change.details["layers"] == [0, 2, 5]
    feed = {name: torch.from_numpy(value) for name, value in tokens(student, (2, 7), padded=False)[0].items()}
    handles = []
    for place in (1, 3, 4):
        skip = layers_of(teacher)[place].register_forward_hook(
            lambda _, given, made: (given[0], *made[1:]) if isinstance(made, tuple) else given[0]
        )
        handles.append(skip)
    with torch.no_grad():
        wanted = teacher.forward(feed)[teacher.output_names[0]]
        got = student.forward(feed)[student.output_names[0]]
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    for handle in handles:
        handle.remove()
    if student.task == "causal-lm":
        prompt = feed["input_ids"][:, :3]
        options = {
            "max_new_tokens": 4,
            "do_sample": False,
            "pad_token_id": 0,
            "attention_mask": torch.ones_like(prompt),
        }
        cached = student.module.generate(prompt, use_cache=True, **options)
        assert torch.equal(cached, student.module.generate(prompt, use_cache=False, **options))
    loading.save(student, tmp_path / "saved")
    assert not (tmp_path / "saved" / loading.SHAPES_FILE).exists()  # the config says it all
    again = type(student.module).from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(again(**feed)[0], got)


def test_a_number_of_layers_is_spread_evenly(tmp_path: Path) -> None:
    teacher = deep_qwen()
    student, _ = create("reduce step", "student", {"layers": 3}, "test").apply(teacher, context(teacher, tmp_path))
    for mine, theirs in enumerate((1, 3, 5)):
        a, b = layers_of(student)[mine], layers_of(teacher)[theirs]
        assert torch.equal(a.mlp.up_proj.weight, b.mlp.up_proj.weight)
        assert a.self_attn.layer_idx == mine
    assert student.module.config.layer_types == ["full_attention"] * 3


@pytest.mark.parametrize(
    "losses", [None, {"hidden": {"layers": {0: 2, 1: 5}}}, {"attention": 1.0, "value_relation": 1.0}]
)
def test_a_shallow_student_is_distilled(losses: Any, tmp_path: Path) -> None:
    teacher = deep_bert()
    student, _ = Student(layers=2).apply(teacher, context(teacher, tmp_path))
    step = Distill(steps=40, learning_rate=3e-3, losses=losses)
    _, change = step.apply(student, data(teacher, tmp_path / "run"))
    assert change.details["loss_last"] < 0.9 * change.details["loss_first"]


@pytest.mark.parametrize(
    ("layers", "said"), [((2, 1), "rising numbers of 0..5"), ((0, 6), "0..5"), (7, "Allowed: 1..6"), ((1, 1), "rising")]
)
def test_layers_that_are_not_there(layers: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Student(layers=layers).check(deep_bert())


def test_a_model_without_layers() -> None:
    with pytest.raises(ModelError, match="0 stacks of layers"):
        Student(layers=1).check(two_heads())
    with pytest.raises(RecipeError, match="layers"):
        create("reduce step", "student", {}, "test")
    with pytest.raises(RecipeError, match="layers"):
        create("reduce step", "student", {"layers": []}, "test")
