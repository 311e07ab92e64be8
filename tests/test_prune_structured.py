"""Structured pruning: exact counts, real shapes, function kept where what went was nothing, input untouched."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeredux import loading, shapes
from edgeredux.errors import DataError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.groups import find
from edgeredux.pruning.repair import ridge_fit
from edgeredux.pruning.structured import Structured
from edgeredux.pruning.taylor import taylor_scores
from edgeredux.registry import create
from edgeredux.seams import Feed, ReduceContext

TOKENS = ("batch", "sequence")


def bert() -> Model:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    return wrap(BertModel(config).eval(), ("input_ids", "attention_mask"), "embedding")


def llama() -> Model:
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        vocab_size=50,
    )
    return wrap(LlamaModel(config).eval(), ("input_ids", "attention_mask"), "embedding")


def wrap(module: torch.nn.Module, names: tuple[str, ...], task: str) -> Model:
    axes = {**dict.fromkeys(names, TOKENS), "last_hidden_state": (*TOKENS, None)}
    return Model(
        module=module,
        name="tiny",
        task=task,  # type: ignore[arg-type]
        input_names=names,
        output_names=("last_hidden_state",),
        axes=axes,
        source="tiny",
        sha256="0" * 64,
        is_transformers=True,
    )


def feeds(count: int = 6) -> list[Feed]:
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        mask = np.ones((4, 12), np.int64)
        mask[0, 7:] = 0
        made.append({"input_ids": generator.integers(1, 50, (4, 12)), "attention_mask": mask})
    return made


def context(model: Model, scratch: Path, batches: list[Feed] | None = None) -> ReduceContext:
    given = feeds() if batches is None else batches
    return ReduceContext(teacher=model, calibration=given, training=given, seed=0, threads=1, scratch=scratch)


@pytest.mark.parametrize("make", [bert, llama])
def test_counts_are_exact_and_the_input_is_untouched(make, tmp_path: Path) -> None:
    model = make()
    before = copy.deepcopy(model.module.state_dict())
    reduced, change = Structured(ffn=0.3, heads=0.5).apply(model, context(model, tmp_path))
    for old, new in zip(find(model.module), find(reduced.module), strict=True):
        share = 0.3 if old.kind == "ffn" else 0.5
        assert new.units == old.units - int(share * old.units)
    assert change.changed
    assert reduced.parameters() < model.parameters()
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    assert np.isfinite(reduced.run(feeds(1)[0])["last_hidden_state"]).all()


@pytest.mark.parametrize("make", [bert, llama])
def test_removing_what_does_nothing_keeps_the_function(make, tmp_path: Path) -> None:
    model = make()
    for group in find(model.module):
        reader = model.module.get_submodule(group.reader)
        with torch.no_grad():
            reader.weight[:, : group.width * (group.units // 2)] = 0
    reduced, _ = Structured(ffn=0.5, heads=0.5, repair="none").apply(model, context(model, tmp_path))
    feed = feeds(1)[0]
    keep = feed["attention_mask"].astype(bool)
    a, b = model.run(feed)["last_hidden_state"][keep], reduced.run(feed)["last_hidden_state"][keep]
    np.testing.assert_allclose(a, b, atol=1e-5)  # float32 sums in another order


def zoo() -> list[Any]:
    from transformers import (
        DistilBertConfig,
        Gemma2Config,
        MistralConfig,
        OPTConfig,
        Qwen2Config,
        Qwen3Config,
        RobertaConfig,
        ViTConfig,
    )

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    wide = {**shape, "intermediate_size": 64}
    decoder = {**wide, "num_key_value_heads": 2, "vocab_size": 50}
    return [
        RobertaConfig(**wide, vocab_size=50),
        DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=4, vocab_size=50),
        ViTConfig(**wide, image_size=32, patch_size=16),
        Qwen2Config(**decoder),
        Qwen3Config(**decoder, head_dim=8),
        Gemma2Config(**decoder, head_dim=8),
        MistralConfig(**decoder),
        OPTConfig(**shape, ffn_dim=64, vocab_size=50, word_embed_proj_dim=32),
    ]


@pytest.mark.parametrize("config", zoo(), ids=lambda config: config.model_type)
def test_every_family_shrinks_runs_and_round_trips(config, tmp_path: Path) -> None:
    from transformers import AutoModel

    torch.manual_seed(0)
    names = ("pixel_values",) if config.model_type == "vit" else ("input_ids", "attention_mask")
    model = wrap(AutoModel.from_config(config).eval(), names, "embedding")
    batches = feeds()
    if config.model_type == "vit":
        model = dataclasses.replace(model, task="generic", axes={**model.axes, "pixel_values": ("batch",)})
        batches = [
            {"pixel_values": np.random.default_rng(i).normal(size=(8, 3, 32, 32)).astype(np.float32)} for i in range(4)
        ]
    reduced, _ = Structured(ffn=0.25, heads=0.5).apply(model, context(model, tmp_path, batches))
    assert {(group.kind, group.units) for group in find(reduced.module)} == {
        ("ffn", 48),
        ("heads", find(model.module)[0].units // 2),
    }
    first = reduced.run(batches[0])["last_hidden_state"]
    loading.save(reduced, tmp_path / "saved")
    again = loading.load_reduced(tmp_path / "saved", model)
    np.testing.assert_array_equal(first, again.run(batches[0])["last_hidden_state"])


def test_linears_in_a_sequential_are_an_ffn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(6, 8),
        torch.nn.ReLU(),
        torch.nn.Linear(8, 12),
        torch.nn.GELU(),
        torch.nn.Linear(12, 4),
        torch.nn.LayerNorm(4),
        torch.nn.Linear(4, 4),
    ).eval()
    axes = {"x": ("batch", None), "y": ("batch", None)}
    model = dataclasses.replace(wrap(module, ("x",), "generic"), output_names=("y",), axes=axes, is_transformers=False)
    assert [(group.reader, group.units) for group in find(module)] == [("2", 8), ("4", 12)]  # none across LayerNorm
    batches = [{"x": np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)}]
    with torch.no_grad():
        module[2].weight[:, :4] = 0
        module[4].weight[:, :6] = 0
    reduced, _ = Structured(ffn=0.5, heads=0).apply(model, context(model, tmp_path, batches))
    assert [tuple(reduced.module[i].weight.shape) for i in (0, 2, 4)] == [(4, 6), (6, 4), (4, 6)]
    np.testing.assert_allclose(reduced.run(batches[0])["y"], model.run(batches[0])["y"], atol=1e-4)
    loading.save(reduced, tmp_path / "saved")
    again = loading.load_reduced(tmp_path / "saved", model)
    np.testing.assert_array_equal(reduced.run(batches[0])["y"], again.run(batches[0])["y"])


def test_taylor_against_its_formula_on_a_linear_net() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.Identity(), torch.nn.Linear(4, 2)).eval()
    axes = {"x": ("batch", None), "y": ("batch", None)}
    model = dataclasses.replace(wrap(module, ("x",), "generic"), output_names=("y",), axes=axes, is_transformers=False)
    x = np.random.default_rng(0).normal(size=(20000, 3)).astype(np.float32)
    score = taylor_scores(model, find(module), [{"x": x}], seed=0)["2"].numpy()
    hidden = x @ module[0].weight.detach().numpy().T
    exact = (hidden**2).mean(0) * (module[2].weight.detach().numpy() ** 2).sum(0)  # E ||W_u a_u||^2
    np.testing.assert_allclose(score, exact, rtol=0.05)  # 20000 random directions


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_importance_finds_what_does_nothing(importance, tmp_path: Path) -> None:
    model = bert()
    for group in find(model.module):
        with torch.no_grad():
            model.module.get_submodule(group.reader).weight[:, : group.width * (group.units // 2)] = 0
    step = Structured(ffn=0.5, heads=0.5, repair="none", importance=importance)
    reduced, _ = step.apply(model, context(model, tmp_path))
    keep = feeds(1)[0]["attention_mask"].astype(bool)
    a, b = (each.run(feeds(1)[0])["last_hidden_state"][keep] for each in (model, reduced))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_repair_beats_no_repair_and_matches_lstsq(tmp_path: Path) -> None:
    model = bert()
    feed = feeds(1)[0]
    dense = model.run(feed)["last_hidden_state"]
    errors = {}
    for repair in ("none", "least_squares"):
        step = Structured(ffn=0.5, heads=0.25, repair=repair)  # type: ignore[arg-type]
        reduced, _ = step.apply(model, context(model, tmp_path, feeds(20)))
        errors[repair] = float(np.square(reduced.run(feed)["last_hidden_state"] - dense).mean())
    assert errors["least_squares"] < errors["none"]
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 5, generator=generator), torch.randn(200, 3, generator=generator)
    weight, bias = ridge_fit([x[:90], x[90:]], [y[:90], y[90:]], torch.zeros(3, 5), 1e-9, intercept=True, where="test")
    design = np.concatenate([x.numpy(), np.ones((200, 1))], 1)
    wanted = np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(weight.numpy(), wanted[:5].T, atol=1e-4)  # the ridge is not quite 0
    np.testing.assert_allclose(bias.numpy(), wanted[5], atol=1e-4)


def test_pruned_model_saves_and_loads_the_same(tmp_path: Path) -> None:
    model = bert()
    reduced, _ = Structured(ffn=0.25, heads=0.25).apply(model, context(model, tmp_path))
    loading.save(reduced, tmp_path / "saved")
    again = loading.load(str(tmp_path / "saved"))
    feed = feeds(1)[0]
    names = {name: feed[name] for name in again.input_names if name in feed}
    names.setdefault("token_type_ids", feed["input_ids"] * 0)
    a, b = reduced.run(feed)["last_hidden_state"], again.run(names)["last_hidden_state"]
    np.testing.assert_array_equal(a, b)


def test_stock_transformers_loads_what_its_config_can_say(tmp_path: Path) -> None:
    from transformers import AutoModel

    for model, heads in ((bert(), 0.0), (llama(), 0.5)):
        reduced, _ = Structured(ffn=0.25, heads=heads).apply(model, context(model, tmp_path))
        folder = tmp_path / model.module.config.model_type
        loading.save(reduced, folder)
        assert not (folder / shapes.SHAPES_FILE).exists()
        stock = AutoModel.from_pretrained(folder).eval()
        feed = {name: torch.from_numpy(value) for name, value in feeds(1)[0].items()}
        with torch.inference_mode():
            out = stock(**feed).last_hidden_state.numpy()
        np.testing.assert_array_equal(out, reduced.run(feeds(1)[0])["last_hidden_state"])


def test_impossible_options_are_one_clear_error(tmp_path: Path) -> None:
    for options in ({"ffn": 1.0}, {"ffn": -0.1}, {"fnn": 0.5}, {"importance": "magic"}):
        with pytest.raises(RecipeError):
            create("reduce step", "structured", options, "test")
    with pytest.raises(RecipeError, match="nothing would be removed"):
        Structured(ffn=0, heads=0).check(bert())
    plain = wrap(torch.nn.Linear(4, 4), ("x",), "generic")
    with pytest.raises(ModelError, match="no ffn group"):
        Structured().check(plain)
    with pytest.raises(DataError, match="too few"):
        Structured().apply(bert(), context(bert(), tmp_path, [{k: v[:1, :4] for k, v in feeds(1)[0].items()}]))
