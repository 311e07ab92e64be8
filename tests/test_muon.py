"""Muon and AdamW as one optimizer: what each of torch's own does alone, its state in one place."""

from __future__ import annotations

import math

import torch

from edgeredux.training.muon import MuonAndAdamW


def weights() -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.nn.Parameter(torch.randn(12, 8, generator=generator)) for _ in range(2))  # type: ignore[return-value]


def gradients(*values: torch.nn.Parameter, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for value in values:
        value.grad = torch.randn(value.shape, generator=generator)


def test_against_torch_each_alone() -> None:
    (inside, table), (first, second) = weights(), weights()
    both = MuonAndAdamW([inside], [table], 0.01, 0.1)
    alone = (
        torch.optim.Muon([first], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([second], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, foreach=False),
    )
    for step in range(3):
        rate = 0.01 / (step + 1)
        for group in [*both.param_groups, *(group for each in alone for group in each.param_groups)]:
            group["lr"] = rate
        gradients(inside, table, seed=step)
        gradients(first, second, seed=step)
        both.step()
        for each in alone:
            each.step()
    assert torch.equal(inside, first)
    assert torch.equal(table, second)
    assert set(both.state[inside]) == {"momentum_buffer"}
    assert set(both.state[table]) == {"step", "exp_avg", "exp_avg_sq"}


def test_an_update_of_a_matrix_is_nearly_orthogonal() -> None:
    inside, table = weights()
    before = inside.detach().clone()
    gradients(inside, table, seed=0)
    MuonAndAdamW([inside], [table], 1.0, 0.0).step()
    sizes = torch.linalg.svdvals(before - inside.detach()) / (0.2 * math.sqrt(12))
    # Five of its iterations leave singular values between 0.5 and 1.5 (torch's own comment), here in bfloat16.
    assert bool(((sizes > 0.4) & (sizes < 1.6)).all())
