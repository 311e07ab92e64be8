"""Magnitude and Wanda: exact counts even on ties, the paper's score, heads and embeddings left alone."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from test_prune_structured import bert, context, feeds, llama, wrap

from edgeredux.errors import DataError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.layers import layers
from edgeredux.pruning.unstructured import Prune
from edgeredux.registry import create
from edgeredux.sparsity.counts import count_of, smallest


def names(model: Model) -> list[str]:
    return [layer.name for layer in layers(model)]


def test_counts_are_decimal_and_ties_remove_nothing_extra() -> None:
    assert count_of(0.29, 100) == 29  # int(0.29 * 100) is 28
    assert count_of(0.3, 11) == 3
    assert int(smallest(torch.zeros(3, 7), 2).sum()) == 6


@pytest.mark.parametrize("make", [bert, llama])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_magnitude_is_exact_and_leaves_the_rest_alone(make, allocation, tmp_path: Path) -> None:
    model = make()
    with torch.no_grad():  # ties everywhere in one layer
        model.module.get_submodule(names(model)[0]).weight.fill_(0.01)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    pruned, change = Prune(zeros=0.33, allocation=allocation).apply(model, context(model, tmp_path))
    weights = {name: pruned.module.get_submodule(name).weight for name in names(pruned)}
    if allocation == "uniform":
        assert all(int((w == 0).sum()) == count_of(0.33, w.numel()) for w in weights.values())
    total = sum(w.numel() for w in weights.values())
    zeros = sum(int((w == 0).sum()) for w in weights.values())
    assert zeros == change.details["zeros"]
    if allocation == "global":
        assert zeros == count_of(0.33, total)
        kept = torch.cat([w[w != 0].abs() for w in weights.values()]).min()
        gone = torch.cat([before[f"{n}.weight"][w == 0].abs() for n, w in weights.items()]).max()
        assert gone <= kept
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    for name, value in pruned.module.state_dict().items():
        if name.removesuffix(".weight") not in weights:
            assert torch.equal(before[name], value)


def test_wanda_against_the_formula(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4)).eval()
    model = generic(module)
    batches = [{"x": np.random.default_rng(i).normal(size=(8, 6)).astype(np.float32)} for i in range(3)]
    pruned, _ = Prune(zeros=0.5, method="wanda").apply(model, context(model, tmp_path, batches))
    x = np.concatenate([batch["x"] for batch in batches])
    hidden = np.maximum(x @ module[0].weight.detach().numpy().T + module[0].bias.detach().numpy(), 0)
    for index, given in ((0, x), (2, hidden)):
        weight = module[index].weight.detach().numpy().copy()
        score = np.abs(weight) * np.sqrt((given.astype(np.float64) ** 2).sum(0))
        for row in range(len(weight)):
            weight[row, np.argsort(score[row], kind="stable")[: weight.shape[1] // 2]] = 0
        np.testing.assert_array_equal(pruned.module[index].weight.detach().numpy(), weight)


def test_wanda_goes_block_by_block_without_padding(tmp_path: Path) -> None:
    model = bert()
    pruned, _ = Prune(zeros=0.5, method="wanda").apply(model, context(model, tmp_path))
    for name in names(pruned):
        weight = pruned.module.get_submodule(name).weight
        assert bool(((weight == 0).sum(1) == weight.shape[1] // 2).all())
    # The second block's score uses inputs as the pruned first block makes them.
    half = copy.deepcopy(model.module)
    half.encoder.layer[0].load_state_dict(pruned.module.encoder.layer[0].state_dict())
    given: list[torch.Tensor] = []
    query = half.encoder.layer[1].attention.self.query
    query.register_forward_hook(lambda _, inputs, __: given.append(inputs[0].detach()))
    for feed in feeds():
        model.after(half, "").run(feed)
    real = [x[torch.from_numpy(feed["attention_mask"]).bool()] for x, feed in zip(given, feeds(), strict=True)]
    score = query.weight.detach().abs() * torch.cat(real).double().square().sum(0).sqrt().float()
    wanted = torch.zeros_like(score, dtype=torch.bool).scatter_(1, score.argsort(1)[:, :16], True)
    assert torch.equal(pruned.module.encoder.layer[1].attention.self.query.weight == 0, wanted)
    padded = []
    for feed in feeds():
        wrong = feed["input_ids"].copy()
        wrong[feed["attention_mask"] == 0] = 3  # what stands in the padding must not matter
        padded.append({**feed, "input_ids": wrong})
    other, _ = Prune(zeros=0.5, method="wanda").apply(model, context(model, tmp_path, padded))
    assert all(torch.equal(a, b) for a, b in zip(pruned.module.parameters(), other.module.parameters(), strict=True))


def test_exclude_keeps_what_it_names(tmp_path: Path) -> None:
    model = bert()
    pruned, _ = Prune(zeros=0.5, exclude=("*.query",)).apply(model, context(model, tmp_path))
    for name in names(model):
        zeros = int((pruned.module.get_submodule(name).weight == 0).sum())
        assert (zeros == 0) == name.endswith(".query")


def generic(module: torch.nn.Module) -> Model:
    return Model(
        module=module,
        name="plain",
        task="generic",
        input_names=("x",),
        output_names=("y",),
        axes={"x": ("batch", None), "y": ("batch", None)},
        source="plain",
        sha256="0" * 64,
    )


def test_impossible_options_are_one_clear_error(tmp_path: Path) -> None:
    for options in ({"zeros": 1.0}, {"zeros": -0.1}, {"zero": 0.5}, {"method": "magic"}, {"pattern": "odd"}):
        with pytest.raises(RecipeError):
            create("reduce step", "prune", options, "test")
    for options, said in (
        ({"pattern": "2:4", "zeros": 0.6}, "leave zeros out"),
        ({"pattern": "2:4", "allocation": "global"}, "allocation: uniform"),
        ({"method": {"sparsegpt": {"damp": 1}}}, "sparsegpt"),
        ({"pattern": "1x4", "compare": "row"}, "unstructured"),
    ):
        with pytest.raises(RecipeError, match=said) as raised:
            create("reduce step", "prune", options, "test")
        assert "ArgsKwargs" not in str(raised.value), "options that do not fit together are said in our words alone"
    with pytest.raises(RecipeError, match="matches no layer"):
        Prune(exclude=("nothing.*",)).check(bert())
    with pytest.raises(ModelError, match="no layer"):
        Prune().check(wrap(torch.nn.ReLU(), ("x",), "generic"))
    odd = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    with pytest.raises(ModelError, match="6 inputs are no multiple of 4; exclude it"):
        Prune(pattern="2:4").check(generic(odd))
    few = [{"x": np.ones((3, 6), np.float32)}]
    with pytest.raises(DataError, match="too few"):
        Prune(method="sparsegpt").apply(generic(odd), context(generic(odd), tmp_path, few))
    with pytest.raises(DataError, match="no calibration data"):
        Prune(method="wanda").apply(bert(), context(bert(), tmp_path, []))
    broken = bert()
    with torch.no_grad():
        broken.module.encoder.layer[0].attention.self.query.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        Prune(method="wanda").apply(broken, context(broken, tmp_path))
