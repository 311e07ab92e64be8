"""Hidden width: equal to a cut made by hand, exact counts, round trips, what each importance and repair says."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_prune_structured import bert, context, feeds, wrap
from test_prune_structured_families import decoder

import edgeredux
from edgeredux import loading, shapes
from edgeredux.errors import DataError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.channels import Channels
from edgeredux.pruning.width import Width
from edgeredux.pruning.width_repair import _refit_norm
from edgeredux.pruning.width_scores import IMPORTANCE
from edgeredux.registry import create

# What of each family belongs to the residual stream, by hand: a pattern of names, dimension of weight, of bias.
LLAMA = (
    ("embed_tokens|lm_head", 1, None),
    ("layernorm|model.norm", 0, None),
    ("[qkv]_proj|gate_proj|up_proj", 1, None),
)
LLAMA += (("o_proj|down_proj", 0, None),)
STREAM: dict[str, tuple[tuple[str, int, int | None], ...]] = {
    "llama": LLAMA,
    "qwen3": LLAMA,
    "bert": (
        ("_embeddings", 1, None),
        ("LayerNorm", 0, 0),
        ("query|key|value|intermediate.dense|pooler.dense", 1, None),
        ("output.dense", 0, 0),
    ),
    "gpt2": (("wte|wpe|lm_head", 1, None), ("ln_", 0, 0), ("c_attn|c_fc", 0, None), ("c_proj", 1, 0)),
}


def make(kind: str) -> Model:
    return bert() if kind == "bert" else decoder(kind)


def dimension(kind: str, name: str) -> int | None:
    """Which dimension of a parameter runs along the stream."""
    for pattern, weight, bias in STREAM[kind]:
        if re.search(pattern, name):
            return bias if name.endswith("bias") else weight
    return None


def by_hand(kind: str, model: Model, kept: torch.Tensor) -> torch.nn.Module:
    module = copy.deepcopy(model.module)
    made: dict[int, torch.nn.Parameter] = {}
    for name, value in list(module.named_parameters(remove_duplicate=False)):
        dim = dimension(kind, name)
        if dim is None:
            continue
        owner, _, key = name.rpartition(".")
        part: Any = module.get_submodule(owner)
        made.setdefault(id(value), torch.nn.Parameter(value.detach().index_select(dim, kept)))
        setattr(part, key, made[id(value)])
        if isinstance(part, torch.nn.LayerNorm):
            part.normalized_shape = (len(kept),)
        if hasattr(part, "nf"):
            part.nf = part.weight.shape[1]
    return module


@pytest.mark.parametrize("kind", STREAM)
def test_equal_to_a_cut_by_hand_and_round_trips(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    before = copy.deepcopy(model.module.state_dict())
    scores = torch.zeros(32, dtype=torch.float64)
    for name, value in model.module.named_parameters():
        dim = dimension(kind, name)
        if dim is not None:
            scores += value.detach().double().square().movedim(dim, 0).reshape(32, -1).sum(1)
    kept = scores.argsort(descending=True)[:24].sort().values
    step = Width(share=0.25, importance="magnitude", repair="none")
    reduced, change = step.apply(model, context(model, tmp_path))
    assert list(change.details["kept"].values()) == [kept.tolist()]
    wanted = model.after(by_hand(kind, model, kept), "")
    feed, out = feeds(1)[0], model.output_names[0]
    np.testing.assert_array_equal(reduced.run(feed)[out], wanted.run(feed)[out])
    assert {name: value.shape for name, value in reduced.module.state_dict().items()} == {
        name: value.shape for name, value in wanted.module.state_dict().items()
    }
    assert reduced.module.config.hidden_size == (24 if kind in ("llama", "qwen3") else 32)
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    folder = tmp_path / "saved"
    loading.save(reduced, folder)
    again = loading.load_reduced(folder, model)
    np.testing.assert_array_equal(reduced.run(feed)[out], again.run(feed)[out])
    # Heads of their own size are more than the configs of BERT and GPT-2 can say.
    assert (folder / shapes.SHAPES_FILE).exists() == (kind in ("bert", "gpt2"))
    if kind in ("llama", "qwen3"):
        stock = type(model.module).from_pretrained(folder).eval()
        np.testing.assert_array_equal(reduced.run(feed)[out], model.after(stock, "").run(feed)[out])


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "mistral", "smollm3", "phi3", "gpt_neox", "opt"])
def test_other_families_shrink_generate_and_round_trip(kind: str, tmp_path: Path) -> None:
    model = decoder(kind)
    reduced, _ = Width(share=0.25).apply(model, context(model, tmp_path))
    loading.save(reduced, tmp_path / "saved")
    again = loading.load_reduced(tmp_path / "saved", model)
    feed = feeds(1)[0]
    np.testing.assert_array_equal(reduced.run(feed)["logits"], again.run(feed)["logits"])
    ids = torch.from_numpy(feed["input_ids"][1:2])
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with_cache = again.module.generate(ids, use_cache=True, **options)
    assert torch.equal(with_cache, again.module.generate(ids, use_cache=False, **options))
    assert (tmp_path / "saved" / shapes.SHAPES_FILE).exists() == (kind not in ("mistral", "smollm3", "phi3"))


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_every_importance_keeps_an_exact_count(importance: str, tmp_path: Path) -> None:
    model = decoder("qwen3")
    _, change = Width(share=0.3, importance=importance).apply(model, context(model, tmp_path))
    assert [len(kept) for kept in change.details["kept"].values()] == [32 - 9]
    _, change = Width(share=0.3, importance=importance, multiple_of=8).apply(model, context(model, tmp_path))
    assert change.details["width_after"] == 24


def test_minitron_against_its_formula(tmp_path: Path) -> None:
    model = decoder("llama")
    seen: dict[str, list[torch.Tensor]] = {}
    names = [name for name, _ in model.module.named_modules() if "norm" in name]
    for name in names:
        seen[name] = []
        model.module.get_submodule(name).register_forward_hook(
            lambda _, given, made, name=name: seen[name].append(made)
        )
    for feed in feeds():
        for row, mask in zip(feed["input_ids"], feed["attention_mask"], strict=True):
            model.run({"input_ids": row[None, mask.astype(bool)], "attention_mask": mask[None, mask.astype(bool)]})
    score = sum(torch.stack([made[0].abs().mean(0).square() for made in seen[name]]).sum(0).sqrt() for name in names)
    assert isinstance(score, torch.Tensor)
    plain = decoder("llama")
    _, change = Width(importance="minitron", repair="none").apply(plain, context(plain, tmp_path))
    assert list(change.details["kept"].values()) == [score.argsort(descending=True)[:24].sort().values.tolist()]


@pytest.mark.parametrize(
    ("kind", "importance"), [("bert", "activation"), ("llama", "minitron"), ("gpt2", "taylor"), ("qwen3", "wanda")]
)
def test_dimensions_that_do_nothing_go_first(kind: str, importance: str, tmp_path: Path) -> None:
    model = make(kind)
    silent = torch.tensor([3, 4, 5, 11, 17, 20, 30, 31])
    with torch.no_grad():
        for name, value in model.module.named_parameters():
            dim = dimension(kind, name)
            if dim is not None:
                value.index_fill_(dim, silent, 0.0)
    _, change = Width(importance=importance, repair="none").apply(model, context(model, tmp_path))
    (kept,) = change.details["kept"].values()
    assert sorted(set(range(32)) - set(kept)) == silent.tolist()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_neox"])
def test_repair_beats_no_repair(kind: str, tmp_path: Path) -> None:
    model = decoder(kind)
    feed = feeds(1)[0]
    keep = feed["attention_mask"].astype(bool)
    errors = {}
    for repair in ("none", "least_squares"):
        step = Width(share=0.25, repair=repair)  # type: ignore[arg-type]
        reduced, _ = step.apply(model, context(model, tmp_path, feeds(20)))
        errors[repair] = float(np.square(reduced.run(feed)["logits"][keep] - model.run(feed)["logits"][keep]).mean())
    assert errors["least_squares"] < 0.9 * errors["none"]


@pytest.mark.parametrize("kind", ["layer_norm", "llama", "gemma"])
def test_norms_are_refitted_to_the_best_scale_and_offset(kind: str) -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm: Any = {"layer_norm": torch.nn.LayerNorm, "llama": LlamaRMSNorm, "gemma": GemmaRMSNorm}[kind](6)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator)
    target = torch.randn(300, 6, generator=generator) + 2 * norm(x).detach()
    ones = np.ones((300, 1))
    wanted = []
    for made, y in zip(norm(x).detach().T.numpy(), target.T.numpy(), strict=True):
        design = np.concatenate([made[:, None], ones], 1) if kind == "layer_norm" else made[:, None]
        wanted.append(design @ np.linalg.lstsq(design, y, rcond=None)[0])
    with torch.no_grad():
        _refit_norm(norm, [x[:100], x[100:]], [target[:100], target[100:]])
        np.testing.assert_allclose(norm(x).numpy(), np.stack(wanted, 1), atol=1e-5)


def test_a_tied_head_stays_tied_and_unfitted(tmp_path: Path) -> None:
    model = decoder("gpt2")
    table = model.module.get_input_embeddings().weight
    reduced, change = Width().apply(model, context(model, tmp_path))
    (kept,) = change.details["kept"].values()
    assert reduced.module.lm_head.weight is reduced.module.get_input_embeddings().weight
    assert torch.equal(reduced.module.lm_head.weight, table[:, kept])
    # Channels of the same stream, by the other step.
    reduced, _ = Channels(share=0.25).apply(model, context(model, tmp_path))
    columns = {tuple(column.tolist()) for column in table.T}
    assert all(tuple(column.tolist()) in columns for column in reduced.module.lm_head.weight.T)


def test_in_one_line_and_as_a_classifier() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    module = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, **sizes)).eval()
    pruned = edgeredux.prune(module, pattern="width", zeros=0.5, method="magnitude", data=feeds(8))
    assert pruned.bert.embeddings.word_embeddings.weight.shape == (50, 16)
    assert pruned(torch.from_numpy(feeds(1)[0]["input_ids"])).logits.shape == (4, 3)
    assert module.config.hidden_size == 32
    # The pooler writes no stream: it only reads fewer dimensions.
    assert pruned.bert.pooler.dense.weight.shape == (32, 16)


def test_mistakes_are_one_clear_error(tmp_path: Path) -> None:
    for options in (
        {"share": 1.0},
        {"share": -0.1},
        {"importance": "magic"},
        {"importance": "bn_scale"},
        {"zeros": 0.5},
    ):
        with pytest.raises(RecipeError):
            create("reduce step", "width", options, "test")
    with pytest.raises(RecipeError, match=r"share 0.01 of 32 dimensions is none"):
        Width(share=0.01).check(bert())
    with pytest.raises(RecipeError, match=r"LlamaConfig takes no hidden_size 23 of 32; with multiple_of: 4 it is 24"):
        Width(share=0.3).check(make("llama"))
    Width(share=0.3, multiple_of=4).check(make("llama"))
    for kind in ("bert", "gpt2", "qwen3"):  # no number is impossible where the config does not say it, or takes any
        Width(share=0.3).check(make(kind))
    plain = wrap(torch.nn.Linear(4, 4), ("x",), "generic")
    with pytest.raises(ModelError, match=r"no one hidden_size.*step channels"):
        Width().check(plain)
    with pytest.raises(DataError, match="no calibration data"):
        Width().apply(bert(), context(bert(), tmp_path, []))
    with pytest.raises(RecipeError, match="allowed are minitron, activation"):
        edgeredux.prune(bert(), pattern="width", method="magic", data=feeds(1))
    broken = bert()
    with torch.no_grad():
        broken.module.get_submodule("encoder.layer.0.output.dense").weight[0, 0] = float("nan")
    for importance in ("activation", "minitron"):
        with pytest.raises(ModelError, match="NaN"):
            Width(importance=importance).apply(broken, context(broken, tmp_path))
