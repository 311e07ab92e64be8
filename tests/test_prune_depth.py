"""Whole layers go: which ones, what is left computes, and stock transformers loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_prune_structured import bert, context, feeds

from edgeredux import loading
from edgeredux.errors import RecipeError
from edgeredux.model import Model
from edgeredux.pruning.depth import Depth, influence, stacks


def decoder(kind: str) -> Model:
    import transformers as t
    from tiny_models import model_of

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "vocab_size": 50}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    module: Any = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**sizes, **heads)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**sizes, **heads)),
        "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**sizes, **heads, sliding_window=4)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=50, n_positions=64)),
    }[kind]()
    return model_of(module, "causal-lm", ("input_ids", "attention_mask"), "logits", ("batch", "sequence", None))


def passed_over(_: torch.nn.Module, given: tuple[Any, ...], made: Any) -> Any:
    return (given[0], *made[1:]) if isinstance(made, tuple) else given[0]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2"])
def test_decoders_lose_layers_and_still_generate_with_their_cache(kind: str, tmp_path: Path) -> None:
    model = decoder(kind)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    pruned, change = Depth(layers=(1, 2)).apply(model, context(model, tmp_path))
    assert list(change.details["removed"].values()) == [[1, 2]]
    assert pruned.module.config.num_hidden_layers == 2
    types = getattr(model.module.config, "layer_types", None)
    if types is not None:
        assert pruned.module.config.layer_types == [types[0], types[3]]
    # The same as the dense model with those layers passed over.
    stack = stacks(model)[0]
    handles = []
    for place in (1, 2):
        handles.append(stack.items[place].register_forward_hook(passed_over))
    skipped = [model.run(feed)["logits"] for feed in feeds()]
    for handle in handles:
        handle.remove()
    for feed, wanted in zip(feeds(), skipped, strict=True):
        np.testing.assert_allclose(pruned.run(feed)["logits"], wanted, atol=1e-6)
    loading.save(pruned, tmp_path / "saved")
    stock = type(pruned.module).from_pretrained(tmp_path / "saved").eval()
    tokens = torch.tensor([[3, 4, 5]])
    grown = stock.generate(tokens, max_new_tokens=6, do_sample=False, use_cache=True, pad_token_id=0)
    plain = pruned.module.generate(tokens, max_new_tokens=6, do_sample=False, use_cache=False, pad_token_id=0)
    assert grown.tolist() == plain.tolist()
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


def test_the_least_influential_layer_goes(tmp_path: Path) -> None:
    model = decoder("llama")
    with torch.no_grad():  # the third layer adds next to nothing to the residual stream
        model.module.model.layers[2].self_attn.o_proj.weight.mul_(1e-3)
        model.module.model.layers[2].mlp.down_proj.weight.mul_(1e-3)
    for importance in ("influence", "output"):
        pruned, change = Depth(share=0.25, importance=importance).apply(model, context(model, tmp_path))
        assert change.details["removed"] == {"model.layers": [2]}
        assert len(pruned.module.model.layers) == 3


def test_influence_against_hidden_states() -> None:
    model = bert()
    feed = feeds()[0]
    tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
    with torch.no_grad():
        states = model.module(**tensors, output_hidden_states=True).hidden_states
    real = tensors["attention_mask"].bool()
    found = influence(model, stacks(model)[0], [feed])
    for place, score in enumerate(found):
        cosine = torch.nn.functional.cosine_similarity(states[place], states[place + 1], dim=-1)[real]
        assert score == pytest.approx(1 - float(cosine.mean()), abs=1e-6)


def test_impossible_options_are_one_clear_error() -> None:
    for options, said in (
        ({}, "either share or layers"),
        ({"share": 0.5, "layers": (1,)}, "either share or layers"),
        ({"layers": (7,)}, r"0\.\.3"),
        ({"layers": (0, 1, 2, 3)}, r"0\.\.3"),
        ({"share": 0.1}, "nothing would be removed"),
    ):
        with pytest.raises(RecipeError, match=said):
            Depth(**options).check(decoder("llama"))
