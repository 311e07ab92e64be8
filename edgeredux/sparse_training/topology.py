"""Masks that move: where weights start, which are dropped, which are grown, how many. True = zero in every mask."""

from __future__ import annotations

import math

import torch

from edgeredux.errors import ModelError
from edgeredux.sparsity.counts import smallest


def random_mask(shape: torch.Size, zeros: int, generator: torch.Generator) -> torch.Tensor:
    """A mask with exactly `zeros` zeros at places drawn without replacement."""
    size = shape.numel()
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=generator)[:zeros]] = True
    return mask.view(shape)


def magnitude_mask(weight: torch.Tensor, zeros: int) -> torch.Tensor:
    """A mask with exactly `zeros` zeros at the smallest magnitudes, ties by lower index."""
    return smallest(weight.detach().abs().flatten(), zeros).view_as(weight)


def cosine_share(step: int, start: float, end: int) -> float:
    """Share of a layer's weights that is replaced at `step`: start / 2 * (1 + cos(pi * step / end)).

    Evci et al. 2020, section 3 (3), f_decay with alpha = start and T_end = end.
    """
    return start / 2 * (1 + math.cos(math.pi * step / end))


def replaced(weight: torch.Tensor, zero: torch.Tensor, count: int, growth: torch.Tensor) -> torch.Tensor:
    """The mask after `count` weights were dropped and as many grown (Evci et al. 2020, alg. 1).

    Dropped: the smallest magnitudes among those that are there. Grown: the largest `growth` among those that are not,
    the ones just dropped included; such a one stays what it was. Ties by lower index. The number of zeros is the same
    before and after. Raises ModelError when `growth` has no order (NaN).
    """
    infinite = float("inf")
    dropped = smallest(weight.detach().abs().masked_fill(zero, infinite).flatten(), count).view_as(weight)
    absent = zero | dropped
    grown = smallest((-growth).masked_fill(~absent, infinite).flatten(), count).view_as(weight)
    mask = absent & ~grown
    if int(mask.sum()) != int(zero.sum()):
        raise ModelError("the gradients that should choose new weights are not finite; lower learning_rate")
    return mask
