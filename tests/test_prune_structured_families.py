"""Structured pruning over families: what is removed equals what is masked, fused matrices, counts by layer, generation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_prune_structured import context, feeds, llama, wrap

from edgeredux import loading
from edgeredux.errors import RecipeError
from edgeredux.model import Model
from edgeredux.pruning.groups import find, remove
from edgeredux.pruning.proof import disproved
from edgeredux.pruning.structured import Structured
from edgeredux.pruning.unit_scores import IMPORTANCE

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
DECODERS = ("llama", "qwen3", "gemma2", "gemma3_text", "mistral", "smollm3", "phi3", "gpt2", "gpt_neox", "opt")


def decoder(kind: str) -> Model:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {**WIDE, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 50}
    if kind in ("gpt_neox", "opt"):
        sizes = {**WIDE, "max_position_embeddings": 64}
    if kind == "opt":
        sizes |= {"ffn_dim": sizes.pop("intermediate_size"), "word_embed_proj_dim": 32}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = wrap(AutoModelForCausalLM.from_config(config).eval(), ("input_ids", "attention_mask"), "causal-lm")
    return model.__class__(**{**vars(model), "output_names": ("logits",)})


@pytest.mark.parametrize("kind", DECODERS)
def test_removing_equals_masking_and_it_generates_and_round_trips(kind: str, tmp_path: Path) -> None:
    model = decoder(kind)
    groups = find(model.module)
    assert [group.kind for group in groups].count("heads") == 2
    assert [group.kind for group in groups].count("ffn") == 2
    assert disproved(model, groups, feeds(1)[0]) == {}
    masked, cut = copy.deepcopy(model.module), copy.deepcopy(model.module)
    for place, group in enumerate(groups):  # other units, and other counts, in every layer
        keep = torch.arange(group.units)[place % 2 : group.units - place // 2]
        gone = torch.ones(group.units, dtype=torch.bool)
        gone[keep] = False
        weight = masked.get_submodule(group.reader).weight.data
        columns = group.columns[gone].flatten()
        if kind == "gpt2":
            weight[columns] = 0
        else:
            weight[:, columns] = 0
        remove(cut, group, keep)
    reduced = model.after(cut, "")
    feed = feeds(1)[0]
    keep = feed["attention_mask"].astype(bool)
    a, b = model.after(masked, "").run(feed)["logits"][keep], reduced.run(feed)["logits"][keep]
    np.testing.assert_allclose(a, b, atol=1e-5)  # float32 sums in another order
    assert reduced.parameters() < model.parameters()
    loading.save(reduced, tmp_path / "saved")
    again = loading.load_reduced(tmp_path / "saved", model)
    np.testing.assert_array_equal(reduced.run(feed)["logits"], again.run(feed)["logits"])
    ids = torch.from_numpy(feed["input_ids"][1:2])
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with_cache = again.module.generate(ids, use_cache=True, **options)
    assert torch.equal(with_cache, again.module.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_every_importance_keeps_an_exact_count(importance: str, allocation: Any, tmp_path: Path) -> None:
    model = llama()
    step = Structured(ffn=0.3, heads=0.5, importance=importance, allocation=allocation)
    _, change = step.apply(model, context(model, tmp_path))
    ffn = int(0.3 * 96) if allocation == "global" else 2 * int(0.3 * 48)
    assert change.details["removed"] == {"ffn": ffn, "heads": 4}


def test_shares_by_layer(tmp_path: Path) -> None:
    model = llama()
    step = Structured(ffn={"layers.0.*": 0.5, "*": 0.25}, heads={"layers.1.*": 0.5})
    step.check(model)
    reduced, _ = step.apply(model, context(model, tmp_path))
    assert [group.units for group in find(reduced.module)] == [4, 24, 2, 36]
    with pytest.raises(RecipeError, match=r"'nothing\.\*' matches no group"):
        Structured(ffn={"nothing.*": 0.5}).check(model)
    with pytest.raises(RecipeError, match="global takes one number"):
        Structured(ffn={"*": 0.5}, heads=0, allocation="global").check(model)


def test_global_allocation_takes_from_where_nothing_is_lost(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.module.get_submodule("layers.1.mlp.down_proj").weight[:, :24] = 0
    step = Structured(ffn=0.25, heads=0, allocation="global", repair="none")
    reduced, change = step.apply(model, context(model, tmp_path))
    assert change.details["removed_by_layer"]["layers.1.mlp.down_proj"] == "24 of 48"
    a, b = (each.run(feeds(1)[0])["last_hidden_state"] for each in (model, reduced))
    np.testing.assert_allclose(a, b, atol=1e-5)  # float32 sums in another order


def test_a_unit_that_is_connected_with_others_is_found_out() -> None:
    module = torch.nn.Module()
    module.a, module.b = torch.nn.Linear(4, 6), torch.nn.Linear(6, 4)
    for forward, why in (
        (lambda x: module.b(module.a(x).softmax(-1)), "reaches 6"),
        # Run twice, and only the second time as if nothing else were connected.
        (lambda x: module.b(module.a(x).softmax(-1)) + module.b(module.a(x)), "reaches 6"),
    ):
        module.forward = forward
        axes = {"x": ("batch", None), "y": ("batch", None)}
        base = vars(wrap(module, ("x",), "generic"))
        model = Model(**{**base, "output_names": ("y",), "axes": axes, "is_transformers": False})
        found = disproved(model, find(module), {"x": np.ones((2, 4), np.float32)})
        assert why in found["b"]
