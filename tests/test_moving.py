"""Every row of docs/moving.md is tried, and where the other tool is here its zeros are compared with ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.nn.utils import prune as torch_prune

import edgeredux

TABLE = (Path(__file__).parents[1] / "docs" / "moving.md").read_text(encoding="utf-8")
ROWS = re.findall(r"\| `(edgeredux\.[^`]*)` \|$", TABLE, re.MULTILINE)


def net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 1),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 4),
    ).eval()


def batches() -> list[torch.Tensor]:
    return [torch.randn(16, 4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]


def test_the_table_was_read() -> None:
    assert len(ROWS) >= 12


@pytest.mark.parametrize("row", ROWS)
def test_every_row_runs_and_leaves_the_model_alone(row: str) -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = eval(row, {"edgeredux": edgeredux, "model": model, "data": batches()})  # our own documentation's lines
    if isinstance(made, str):  # a sensitivity table as CSV
        assert made.startswith("parameter,sparsity,quality,")
    else:
        assert isinstance(made, torch.nn.Sequential)
        assert made(batches()[0]).shape == (16, 4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_l1_unstructured_leaves_the_same_zeros() -> None:
    theirs, ours = net(), edgeredux.prune(net(), zeros=0.5)
    for index in (0, 2, 4):
        torch_prune.l1_unstructured(theirs[index], "weight", amount=0.5)
        assert torch.equal(theirs[index].weight == 0, ours[index].weight == 0)


def test_global_unstructured_leaves_the_same_zeros() -> None:
    theirs, ours = net(), edgeredux.prune(net(), zeros=0.5, allocation="global")
    parts = [(theirs[index], "weight") for index in (0, 2, 4)]
    torch_prune.global_unstructured(parts, pruning_method=torch_prune.L1Unstructured, amount=0.5)
    for index in (0, 2, 4):
        assert torch.equal(theirs[index].weight == 0, ours[index].weight == 0)
