"""Units in a better order for tiles: the same function, more of the score kept, never less than as they stood."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from test_prune_structured import context
from tiny_models import tiny_bert, tiny_llama, tokens

from edgeredux.errors import DataError, RecipeError
from edgeredux.pruning.order_search import Made, Read, best_order, total_kept
from edgeredux.pruning.reorder import reordered
from edgeredux.pruning.unstructured import Prune
from edgeredux.registry import create
from edgeredux.sparsity.patterns import parse


def kept_by_mask(scores: torch.Tensor, pattern: str, zeros: float) -> float:
    """What the pattern's own mask leaves of the scores: another way to the same sum."""
    found = parse(pattern)
    return float(scores[~found.mask(scores, found.removed(*scores.shape, zeros))].sum())


def problem(seed: int, units: int = 8) -> tuple[torch.Tensor, torch.Tensor, Made, Read]:
    """W1 [units, 8] and W2 [4, units] of an FFN, for tile:2x2 at half zeros."""
    torch.manual_seed(seed)
    first, second = torch.rand(units, 8) ** 4, torch.rand(4, units) ** 4
    bands = torch.arange(units)[:, None] // (units // 2)
    made = Made(first.reshape(units, 1, 4, 2).sum(-1), bands, 2)
    return first, second, made, Read(second.reshape(2, 2, units).sum(1).T, 2, units // 4)


@pytest.mark.parametrize("seed", range(4))
def test_total_is_what_the_patterns_masks_keep(seed: int) -> None:
    first, second, made, read = problem(seed)
    order = torch.randperm(8)
    wanted = kept_by_mask(first[order], "tile:2x2", 0.5) + kept_by_mask(second[:, order], "tile:2x2", 0.5)
    assert total_kept(order, [made], read) == pytest.approx(wanted, rel=1e-5)


def test_near_the_best_of_all_orders() -> None:
    """Against every one of the 720 orders of 6 units: most of what a better order can win is won."""
    won, possible = 0.0, 0.0
    for seed in range(8):
        _, _, made, read = problem(seed, units=6)
        read = Read(read.scores, 2, 1)
        best = max(total_kept(torch.tensor(order), [made], read) for order in itertools.permutations(range(6)))
        stood = total_kept(torch.arange(6), [made], read)
        found = best_order(6, [made], read)
        assert sorted(found.tolist()) == list(range(6))
        assert total_kept(found, [made], read) >= stood
        won, possible = won + total_kept(found, [made], read) - stood, possible + best - stood
    assert won > 0.6 * possible


def test_units_that_belong_together_are_found() -> None:
    """Even units read the first half of the inputs, odd ones the second: sorted, half the zeros cost nothing."""
    scores = torch.zeros(16, 1, 4)
    scores[0::2, :, :2], scores[1::2, :, 2:] = 1.0, 1.0
    made = Made(scores, torch.arange(16)[:, None] // 8, 2)
    assert total_kept(torch.arange(16), [made], None) == 16
    assert total_kept(best_order(16, [made], None), [made], None) == 32


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_the_function_stays_and_tiles_keep_more(make: object, tmp_path: Path) -> None:
    assert callable(make)
    model = make()
    given = tokens(model, (4, 12), (4, 9))
    step = Prune(zeros=0.5, pattern="tile:2x4", reorder=True)
    scores = {}
    from edgeredux.pruning.layers import layers

    for layer in layers(model):
        scores[layer.name] = layer.matrix().abs()
    moved, said = reordered(model, scores, parse("tile:2x4"), 0.5, given[0])
    assert said
    assert all(line["kept_after"] > line["kept_before"] for line in said.values())
    for feed in given:
        for name, value in model.run(feed).items():
            np.testing.assert_allclose(moved.run(feed)[name], value, atol=1e-5)  # sums in another order
    pruned, change = step.apply(model, context(model, tmp_path, given))
    plain, without = Prune(zeros=0.5, pattern="tile:2x4").apply(model, context(model, tmp_path, given))
    assert change.details["zeros_by_layer"] == without.details["zeros_by_layer"]
    left = [sum(float(layer.matrix().abs().sum()) for layer in layers(one)) for one in (pruned, plain)]
    assert left[0] > left[1]
    for layer in layers(pruned):
        assert parse("tile:2x4").violation(layer.matrix()) is None


def test_units_whose_weights_are_all_zero_stay_as_they_stand(tmp_path: Path) -> None:
    model = tiny_bert()
    with torch.no_grad():
        for name in ("intermediate.dense", "output.dense"):
            model.module.get_submodule(f"encoder.layer.0.{name}").weight.zero_()
    _, change = Prune(zeros=0.5, pattern="tile:2x4", reorder=True).apply(
        model, context(model, tmp_path, tokens(model, (4, 12)))
    )
    assert "encoder.layer.1.output.dense" in change.details["reordered"]
    assert "encoder.layer.0.output.dense" not in change.details["reordered"]


def test_what_it_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="reorder is for pattern tile"):
        create("reduce step", "prune", {"pattern": "2:4", "reorder": True}, "test")
    model = tiny_bert()
    with pytest.raises(DataError, match="reorder needs calibration data"):
        Prune(pattern="tile:2x4", reorder=True).apply(model, context(model, tmp_path, []))
