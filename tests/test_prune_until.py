"""The threshold search: stops at the last setting within the limit, judges by what did not calibrate, records all."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_prune_structured import bert, context, feeds
from tiny_models import images, tiny_classifier, tiny_llama, tokens, two_heads
from torch.nn import functional as F

import edgeredux
from edgeredux.batching import singles
from edgeredux.errors import DataError, RecipeError
from edgeredux.held_out import LIMITS, Judge, hold_out
from edgeredux.model import Model
from edgeredux.pruning.layers import layers
from edgeredux.pruning.unstructured import Prune
from edgeredux.pruning.until import PruneUntil
from edgeredux.readings import Reading
from edgeredux.recipe import METRICS
from edgeredux.registry import create
from edgeredux.trials import Trials


def zeros_of(model: Model) -> float:
    found = [layer.matrix() for layer in layers(model)]
    return sum(int((m == 0).sum()) for m in found) / sum(m.numel() for m in found)


def searched(change: Any) -> Trials:
    return Trials.from_json(json.loads(json.dumps(change.details["search"])))


def quality(trials: Trials) -> list[float]:
    values = [trial.checks[0].reading for trial in trials.tried]
    assert all(isinstance(value, Reading) for value in values)
    return [value.value for value in values if isinstance(value, Reading)]


def middle_limit(model: Model, scratch: Path, **options: Any) -> float:
    """A limit that some settings keep and some miss."""
    _, change = PruneUntil(limit=0.0, by=0.1, most=0.9, **options).apply(model, context(model, scratch))
    found = quality(searched(change))
    return (found[4] + found[5]) / 2


def test_it_stops_at_the_last_setting_within_the_limit(tmp_path: Path) -> None:
    model = bert()
    before = copy.deepcopy(model.module.state_dict())
    limit = middle_limit(model, tmp_path)
    pruned, change = PruneUntil(limit=limit, by=0.1, most=0.9).apply(model, context(model, tmp_path))
    trials = searched(change)
    assert [trial.zeros for trial in trials.tried] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert [trial.within for trial in trials.tried] == [True] * 5 + [False]
    assert trials.taken == 0.4
    # The model that comes out is the one that was judged, pruned on what was left to calibrate on.
    given, held = hold_out(context(model, tmp_path), model, 4, 256)
    alone, _ = Prune(zeros=0.4).apply(model, given)
    assert all(torch.equal(value, alone.module.state_dict()[n]) for n, value in pruned.module.state_dict().items())
    assert zeros_of(pruned) == pytest.approx(0.4, abs=1e-3)
    reading = Judge(model, held, 0).readings(pruned)["quality"]
    assert isinstance(reading, Reading)
    assert reading.value == quality(trials)[4] >= limit > quality(trials)[5]
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    # Every trial stands in the history, with the step that makes the result again at its end.
    assert pruned.history[0].startswith("PruneUntil(")
    assert [line.split(":")[1].strip() for line in pruned.history[1:-1]] == [f"zeros {t.zeros:g}" for t in trials.tried]
    assert "missed" in pruned.history[-2]
    assert pruned.history[-1].startswith("Prune(zeros=0.4")
    assert change.why.startswith("zeros 0.4 taken after 5 trials (zeros 0.5 missed the limit)")


def test_halving_comes_nearer_and_the_same_search_twice_is_the_same(tmp_path: Path) -> None:
    model = bert()
    limit = middle_limit(model, tmp_path)
    step = PruneUntil(limit=limit, by=0.1, most=0.9, halvings=3)
    pruned, change = step.apply(model, context(model, tmp_path))
    trials = searched(change)
    assert len(trials.tried) == 9
    good = [trial.zeros for trial in trials.tried if trial.within]
    missed = [trial.zeros for trial in trials.tried if not trial.within]
    assert trials.taken == max(good) < min(missed)
    assert min(missed) - max(good) == pytest.approx(0.1 / 8)
    assert zeros_of(pruned) == pytest.approx(trials.taken, abs=1e-3)
    again, repeated = step.apply(model, context(model, tmp_path))
    assert repeated == change
    assert all(torch.equal(value, again.module.state_dict()[n]) for n, value in pruned.module.state_dict().items())


def test_where_all_settings_are_good_the_most_is_taken(tmp_path: Path) -> None:
    model = bert()
    pruned, change = PruneUntil(limit=0.0, first=0.2, by=0.3, most=0.8).apply(model, context(model, tmp_path))
    assert [trial.zeros for trial in searched(change).tried] == [0.0, 0.2, 0.5, 0.8]
    assert zeros_of(pruned) == pytest.approx(0.8, abs=1e-3)
    assert "the most that was asked for, 0.8" in change.why


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_greedy_by_sensitivity_leaves_what_minds_alone(method: str, tmp_path: Path) -> None:
    model = bert()
    with torch.no_grad():  # a block that hardly does anything can lose all it may
        for part in ("attention.output.dense", "output.dense"):
            model.module.get_submodule(f"encoder.layer.0.{part}").weight.mul_(1e-3)
    said = {"limit": 0.0, "method": method, "allocation": "sensitivity", "first": 0.3, "by": 0.2, "most": 0.7}
    pruned, change = PruneUntil(**said).apply(model, context(model, tmp_path))
    assert [t.zeros for t in searched(change).tried] == [0.0, 0.3, 0.5, 0.7]
    by_layer = change.details["zeros_by_layer"]
    sizes = {layer.name: layer.matrix().numel() for layer in layers(model)}
    assert sum(by_layer.values()) / sum(sizes.values()) == pytest.approx(0.7, abs=0.01)
    assert zeros_of(pruned) == sum(by_layer.values()) / sum(sizes.values())
    _, early = PruneUntil(**{**said, "most": 0.3}).apply(model, context(model, tmp_path))
    idle = "encoder.layer.0.output.dense"
    assert early.details["zeros_by_layer"][idle] / sizes[idle] == pytest.approx(0.3, abs=0.02)
    _, free = PruneUntil(**{**said, "by": 0.6, "most": 0.95}).apply(model, context(model, tmp_path))
    assert free.details["zeros_by_layer"][idle] / sizes[idle] == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("pattern", "first"), [("neurons", 0.25), ("heads", 0.25), ("depth", 0.5), ("1x4", 0.25), ("tile:2x4", 0.25)]
)
def test_every_pattern_can_be_searched(pattern: str, first: float, tmp_path: Path) -> None:
    model = bert()
    step = PruneUntil(limit=0.0, pattern=pattern, first=first, by=0.25, most=0.5)
    pruned, change = step.apply(model, context(model, tmp_path))
    trials = searched(change)
    assert trials.taken == 0.5
    if pattern in ("neurons", "heads", "depth"):
        assert [t.parameters for t in trials.tried] == sorted((t.parameters for t in trials.tried), reverse=True)
        assert trials.tried[-1].parameters == pruned.parameters() < model.parameters()
        assert trials.tried[-1].zero_weights is None
    else:
        assert trials.tried[-1].zero_weights == round(zeros_of(pruned) * (trials.tried[-1].weights or 0))


def test_what_judges_never_calibrates_and_every_fourth_sample_does(tmp_path: Path) -> None:
    model = bert()
    given, held = hold_out(context(model, tmp_path), model, 4, 256)
    samples = singles(model, feeds())
    assert [s["input_ids"].tolist() for s in held] == [s["input_ids"].tolist() for s in samples[3::4]]
    rest = [row for feed in given.calibration for row in singles(model, [feed])]
    assert len(rest) + len(held) == len(samples)
    assert not {str(s["input_ids"].tolist()) for s in rest} & {str(s["input_ids"].tolist()) for s in held}
    assert all(len(feed["input_ids"]) <= 4 for feed in given.calibration)
    _, few = hold_out(context(model, tmp_path), model, 2, 5)
    assert len(few) == 5
    with pytest.raises(DataError, match="at least 4 are needed"):
        hold_out(context(model, tmp_path, feeds(2)), model, 4, 256)


def labelled(model: Model, count: int, seed: int = 0) -> list[Any]:
    made = tokens(model, *[(4, 7)] * count)
    rng = np.random.default_rng(seed)
    return [{**feed, "labels": rng.integers(0, 3, 4)} for feed in made]


def test_a_classifier_is_judged_by_labels_where_there_are_some(tmp_path: Path) -> None:
    model = tiny_classifier()
    batches = labelled(model, 8)
    plain = [{name: value for name, value in feed.items() if name != "labels"} for feed in batches]
    recipe = dataclasses.replace(context(model, tmp_path, plain), training=batches)
    given, held = hold_out(recipe, model, 4, 256)
    assert len(given.calibration) == 8
    assert len(held) == 32
    with pytest.raises(DataError, match="of 3 samples 3 would"):
        hold_out(dataclasses.replace(recipe, training=singles(model, batches)[:3]), model, 4, 256)
    with pytest.raises(DataError, match="no calibration data"):
        hold_out(dataclasses.replace(recipe, calibration=[]), model, 4, 256)
    one_line = context(model, tmp_path, batches)
    given, held = hold_out(one_line, model, 4, 256)
    assert len(held) == 8
    pruned, _ = Prune(zeros=0.7).apply(model, given)
    reading = Judge(model, held, 0).readings(pruned)["quality"]
    assert isinstance(reading, Reading)
    right = [int(pruned.run(sample)["logits"].argmax(-1)[0]) == int(sample["labels"][0]) for sample in held]
    assert reading.unit == "accuracy"
    assert reading.value == sum(right) / len(right)
    _, held = hold_out(context(model, tmp_path, plain), model, 4, 256)
    assert Judge(model, held, 0).dense["quality"] == dataclasses.replace(
        reading, value=1.0, unit="agreement with dense", p10=1.0, p90=1.0, low=1.0, high=1.0
    )
    with pytest.raises(DataError, match="whole numbers"):
        Judge(model, [{**sample, "labels": np.array([0.5])} for sample in held], 0)


def test_a_language_model_is_judged_by_perplexity(tmp_path: Path) -> None:
    model = tiny_llama()
    for layer in layers(model):  # blocks of random weights say little beside the embeddings they are added to
        layer.store(layer.matrix() * 8)
    batches = tokens(model, *[(2, 9)] * 16, padded=False)
    pruned, change = PruneUntil(limit={"perplexity_ratio": 1.05, "agreement_top1": 0.7}, method="wanda", by=0.1).apply(
        model, context(model, tmp_path, batches)
    )
    trials = searched(change)
    _, held = hold_out(context(model, tmp_path, batches), model, 4, 256)
    losses = {}
    for name, m in (("dense", model), ("pruned", pruned)):
        rows = [
            F.cross_entropy(torch.from_numpy(m.run(s)["logits"][0, :-1]), torch.from_numpy(s["input_ids"][0, 1:]))
            for s in held
        ]
        losses[name] = float(torch.stack(rows).mean())
    taken = next(trial for trial in trials.tried if trial.zeros == trials.taken)
    reading = taken.checks[0].reading
    assert isinstance(reading, Reading)
    assert reading.value == pytest.approx(np.exp(losses["pruned"] - losses["dense"]), rel=1e-5)
    assert reading.value <= 1.05
    assert [check.passed for check in trials.tried[-1].checks] == [True, False]  # one missed limit is enough
    assert trials.taken == trials.tried[-2].zeros


def test_any_module_in_one_line_and_a_model_with_its_history() -> None:
    model = two_heads()
    data = images(*[4] * 6)
    found = edgeredux.prune_until(model, limit=0.9, data=data, by=0.2, most=0.8)
    assert isinstance(found, Model)
    assert any("missed" in line or "within" in line for line in found.history)
    module = edgeredux.prune_until(model.module, limit={"quality": 0.0}, data=data, method="wanda", by=0.25, most=0.5)
    assert isinstance(module, torch.nn.Module)
    weights = torch.cat([module.get_parameter(f"{name}.weight").flatten() for name in ("convolution", "head")])
    assert float((weights == 0).float().mean()) > 0.3
    table = edgeredux.sensitivity(model.module, data=data, grid=(0.5,))
    assert [curve.layer for curve in table.curves] == ["convolution", "head"]


@pytest.mark.parametrize(("make", "limit"), [(tiny_llama, {"perplexity_ratio": 9.0}), (bert, 0.1)])
def test_texts_of_unequal_length_without_a_mask_are_all_text(make: Any, limit: Any) -> None:
    model = make()
    plain = dataclasses.replace(model, input_names=("input_ids",))
    rng = np.random.default_rng(0)
    data = [{"input_ids": rng.integers(1, 50, (rows, width))} for rows, width in ((4, 5), (4, 9), (3, 5), (5, 7))]
    masked = [{**{n: np.ones_like(feed["input_ids"]) for n in model.input_names}, **feed} for feed in data]
    if "token_type_ids" in model.input_names:
        masked = [{**feed, "token_type_ids": np.zeros_like(feed["input_ids"])} for feed in masked]
    losses = {}
    for name, m, feeds_ in (("plain", plain, data), ("masked", model, masked)):
        found = edgeredux.prune_until(m, limit=limit, data=feeds_, method="wanda", by=0.3, most=0.6)
        assert len(found.history) == 5
        losses[name] = [curve.loss for curve in edgeredux.sensitivity(m, data=feeds_, grid=(0.9,)).curves]
    # Other samples share a batch, so that float32 sums differ.
    np.testing.assert_allclose(losses["plain"], losses["masked"], rtol=1e-3, atol=1e-9)


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    model = bert()
    for options, said in (
        ({}, "limit"),
        ({"limit": {}}, "at least one metric"),
        ({"limit": {"qualify": 0.9}}, "did you mean 'quality'"),
        ({"limit": float("nan")}, "number of at least 0"),
        ({"limit": 0.9, "pattern": "2:4"}, "nothing to raise"),
        ({"limit": 0.9, "pattern": "vocabulary"}, "takes no zeros"),
        ({"limit": 0.9, "pattern": "nothing"}, "for shapes that shrink"),
        ({"limit": 0.9, "method": "guess"}, "guess"),
        ({"limit": 0.9, "pattern": "heads", "allocation": "owl"}, "allocation"),
        ({"limit": 0.9, "first": 0.9, "most": 0.8}, "nothing would be tried"),
        ({"limit": 0.9, "options": {"colour": 1}}, "colour"),
        ({"limit": 0.9, "by": 0}, "greater than 0"),
    ):
        with pytest.raises(RecipeError, match=said) as problem:
            create("reduce step", "prune_until", options, "here")
        assert "\n" not in str(problem.value)
    with pytest.raises(RecipeError, match="task embedding: unknown limit 'perplexity'"):
        PruneUntil(limit={"perplexity": 20}).check(model)
    with pytest.raises(RecipeError, match=r"unknown limit 'quality'.*Allowed: agreement_top1, perplexity"):
        PruneUntil(limit=0.9).check(tiny_llama())
    with pytest.raises(RecipeError, match=r"missed by the first setting: zeros 0\.95: missed"):
        PruneUntil(limit=0.9999999, first=0.95).apply(model, context(model, tmp_path))
    broken, _ = Prune(zeros=0.9).apply(model, context(model, tmp_path))
    with pytest.raises(RecipeError, match="missed by the model as it came"):
        PruneUntil(limit=0.9999999).apply(broken, context(model, tmp_path))
    with pytest.raises(DataError):
        PruneUntil(limit=0.9).apply(model, context(model, tmp_path, []))


def test_every_limit_is_a_metric_of_budgets() -> None:
    assert {name for names in LIMITS.values() for name in names} <= set(METRICS)
