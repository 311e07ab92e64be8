"""First-order Taylor importance of neurons and heads: how far the model's output moves when one of them goes.

The score of unit u is the mean over samples of (v . J_u a_u)^2: a_u its activations, J_u a_u the first-order change
of the output f when they become zero, v a random normal direction, so that E_v of the square is ||J_u a_u||^2. This is
the squared Taylor score of Molchanov et al. 2019 (eq. 8) with v . f for the loss, since there are no labels here and a
loss against the dense model itself has gradient zero.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from edgeredux.errors import ModelError
from edgeredux.model import Model
from edgeredux.pruning.gradients import directed
from edgeredux.pruning.groups import Group
from edgeredux.seams import Feed


def taylor_scores(model: Model, groups: Sequence[Group], feeds: Sequence[Feed], seed: int) -> dict[str, torch.Tensor]:
    """Score of each unit of each group, by the group's reader, [units], float64. `model` stays untouched."""
    module = copy.deepcopy(model.module).eval().requires_grad_(True)
    student = model.after(module, "")
    scores = {group.reader: torch.zeros(group.units, dtype=torch.float64) for group in groups}
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def take(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            seen[name] = given[0]

        return take

    for group in groups:
        module.get_submodule(group.reader).register_forward_pre_hook(hook(group.reader))
    generator = torch.Generator().manual_seed(seed)
    samples = 0
    for feed in feeds:
        with torch.enable_grad():
            tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
            outputs = student.forward(tensors)[model.output_names[0]]
            moving = directed(model, outputs, tensors.get("attention_mask"), generator)
            slopes = torch.autograd.grad(moving, [seen[group.reader] for group in groups])
        for group, slope in zip(groups, slopes, strict=True):
            moved = (seen[group.reader].detach() * slope).double()
            scores[group.reader] += (
                moved.reshape(len(moved), -1, moved.shape[-1]).sum(1)[:, group.columns].sum(2).square().sum(0)
            )
        samples += len(outputs)
    for name, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise ModelError(f"pruning: the activations or gradients at {name} are NaN or infinite")
    return {name: score / max(1, samples) for name, score in scores.items()}
