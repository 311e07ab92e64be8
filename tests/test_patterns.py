"""Patterns: exact counts on ties and at odd shapes, whole cells, and the best choice by brute force on small cases."""

from __future__ import annotations

import itertools

import pytest
import torch

from edgeredux.errors import RecipeError
from edgeredux.sparsity.patterns import parse

SHAPES = [(8, 16), (16, 32), (4, 64)]
PATTERNS = ["unstructured", "2:4", "4:8", "1:4", "1x4", "1x16", "4x4", "tile:2x4", "tile:4x16", "tile"]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("zeros", [0.0, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ties", [True, False])
def test_the_count_is_exact_whatever_the_scores(name: str, zeros: float, shape: tuple[int, int], ties: bool) -> None:
    pattern = parse(name)
    scores = torch.ones(shape) if ties else torch.rand(shape, generator=torch.Generator().manual_seed(1))
    removed = pattern.removed(*shape, zeros)
    gone = pattern.mask(scores, removed)
    assert gone.shape == shape
    assert int(gone.sum()) == removed * gone.numel() // pattern.steps(*shape)
    share = pattern.fixed_zeros if pattern.fixed_zeros is not None else zeros
    assert 0 <= share * gone.numel() - int(gone.sum()) < gone.numel() / pattern.steps(*shape)
    assert pattern.violation(torch.ones(shape).masked_fill_(gone, 0.0)) is None


def test_rows_compete_alone_when_asked() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])
    assert parse("unstructured").mask(scores, 4).tolist() == [[True] * 4, [False] * 4]
    assert parse("unstructured", "row").mask(scores, 2).tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize("name", ["2:4", "1x2", "tile:2x2"])
def test_no_other_choice_of_cells_keeps_more(name: str) -> None:
    """Against every possible choice: what the mask keeps is the most that the pattern can keep."""
    pattern = parse(name)
    scores = torch.rand(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    removed = pattern.removed(4, 4, 0.5)
    kept = float(scores.masked_fill(pattern.mask(scores, removed), 0.0).sum())
    best = 0.0
    for chosen in itertools.combinations(range(16), 8):
        mask = torch.zeros(16, dtype=torch.bool)
        mask[list(chosen)] = True
        weight = torch.ones(4, 4).masked_fill_(mask.view(4, 4), 0.0)
        if pattern.violation(weight) is None:
            best = max(best, float(scores.masked_fill(mask.view(4, 4), 0.0).sum()))
    assert kept == pytest.approx(best, abs=1e-12)


def test_tile_bands_keep_blocks_of_their_own() -> None:
    scores = torch.zeros(4, 8)
    scores[:2, :4] = 1.0  # the first band needs the first inputs, the second band the last
    scores[2:, 4:] = 1.0
    gone = parse("tile:2x4").mask(scores, 1)
    assert gone[:2].tolist() == [[False] * 4 + [True] * 4] * 2
    assert gone[2:].tolist() == [[True] * 4 + [False] * 4] * 2


@pytest.mark.parametrize(
    ("name", "weight", "said"),
    [
        ("2:4", [[1.0, 1.0, 1.0, 0.0]], "keeps 3"),
        ("1x2", [[1.0, 0.0, 1.0, 1.0]], "partly zero"),
        ("tile:2x2", [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], "between 1 and 2"),
        ("2:4", [[1.0, 1.0]], "multiple of 4"),
    ],
)
def test_broken_patterns_are_seen(name: str, weight: list[list[float]], said: str) -> None:
    assert said in str(parse(name).violation(torch.tensor(weight)))


@pytest.mark.parametrize("name", ["3:2", "0:4", "1x1", "tile:0x4", "tiles", "2;4", ""])
def test_unknown_patterns_are_refused_with_the_allowed_ones(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"), [("2:4", (4, 6)), ("4x4", (6, 8)), ("1x16", (4, 24)), ("tile:4x16", (6, 32))]
)
def test_shapes_that_do_not_divide_are_named(name: str, shape: tuple[int, int]) -> None:
    assert "no multiple of" in str(parse(name).misfit(*shape))
