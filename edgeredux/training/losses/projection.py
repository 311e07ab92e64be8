"""From the student's width to the teacher's, where hidden states of two widths are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch

from edgeredux.training.answers import OUTPUTS, Answers, Needs
from edgeredux.training.losses.positions import real
from edgeredux.training.losses.term import Pair

How: TypeAlias = Literal["learnt", "least_squares"]
Take: TypeAlias = Callable[[Answers], Sequence[torch.Tensor]]
Move: TypeAlias = Callable[[int, torch.Tensor], torch.Tensor]
_RIDGE = 1e-3
_LOOKS = 8  # batches that matrices are fitted on


def projection(
    how: How, pair: Pair, mine: Take, theirs: Take, needs: Needs = OUTPUTS
) -> tuple[Move, dict[str, torch.nn.Parameter]]:
    """`move(i, states)` takes the student's i-th states to the width of the teacher's i-th, [.., width].

    Nothing is done where the widths agree. Else each pair of states has a matrix P of its own, min_P ||T - S P||_F^2 +
    ridge ||P||_F^2 over a few batches of real tokens, ridge 1e-3 of the mean of the diagonal of S^T S. "least_squares"
    leaves it as it is; "learnt" trains it with the student (FitNets, Romero et al. 2015, eq. 3), from there.
    """
    student, teacher, _ = pair.look(needs, needs, 1)[0]
    widths = [(a.shape[-1], b.shape[-1]) for a, b in zip(mine(student), theirs(teacher), strict=True)]
    matrices: dict[int, torch.Tensor] = {}
    if any(small != large for small, large in widths):
        looks = [(mine(a), theirs(b), real(feed)) for a, b, feed in pair.look(needs, needs, _LOOKS)]
        for place, (small, large) in enumerate(widths):
            if small != large:
                matrices[place] = _fit([(a[place], b[place], mask) for a, b, mask in looks])
    learnt = {place: torch.nn.Parameter(matrix) for place, matrix in matrices.items()} if how == "learnt" else {}

    def move(place: int, states: torch.Tensor) -> torch.Tensor:
        if place not in matrices:
            return states
        return states @ (learnt[place] if how == "learnt" else matrices[place])

    return move, {f"projection.{place}": parameter for place, parameter in learnt.items()}


def _fit(states: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
    """P [student width, teacher width], float32."""
    small = torch.cat([a.flatten(0, -2) if mask is None else a[mask] for a, _, mask in states]).double()
    large = torch.cat([b.flatten(0, -2) if mask is None else b[mask] for _, b, mask in states]).double()
    gram = small.T @ small
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    fitted: torch.Tensor = torch.linalg.solve(gram, small.T @ large).float()
    return fitted
