"""Masks: weights that are zero and stay zero, exactly, whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from edgeredux.errors import InternalError


class Masks:
    """Which weights are held at zero, by parameter name: `zero[name]` is boolean, shaped like the weight, True = zero.

    Three things keep a weight at exactly +0.0 through momentum, weight decay, gradient accumulation and mixed
    precision: its gradient is cleared before clipping and before the optimizer sees it, its optimizer state is cleared
    when it becomes masked, and it is filled with 0 after each update. A weight that is let go starts from 0 with an
    empty optimizer state.
    """

    def __init__(self, weights: Mapping[str, torch.nn.Parameter], zero: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights
        self.zero: dict[str, torch.Tensor] = {}
        for name, mask in zero.items():
            self._check(name, mask)
            self.zero[name] = mask.to(weights[name].device).clone()
        self.fill()

    def _check(self, name: str, mask: torch.Tensor) -> None:
        if name not in self._weights:
            raise InternalError(f"masks: {name!r} is not trained, so it cannot be masked")
        if mask.dtype != torch.bool or mask.shape != self._weights[name].shape:
            raise InternalError(f"masks: {name!r} needs a boolean mask of shape {list(self._weights[name].shape)}")

    @torch.no_grad()
    def change(self, name: str, mask: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """The new mask of one weight, in force at once: masked weights and their optimizer state become 0."""
        self._check(name, mask)
        weight = self._weights[name]
        self.zero[name] = mask.to(weight.device).clone()
        weight.masked_fill_(self.zero[name], 0.0)
        for state in optimizer.state.get(weight, {}).values():
            if isinstance(state, torch.Tensor) and state.shape == weight.shape:
                state.masked_fill_(self.zero[name], 0.0)

    @torch.no_grad()
    def fill(self) -> None:
        """Zero at every masked place of every weight (+0.0: updates may leave -0.0 there)."""
        for name, mask in self.zero.items():
            self._weights[name].masked_fill_(mask, 0.0)

    @torch.no_grad()
    def clear_gradients(self) -> None:
        """Zero gradient at every masked place."""
        for name, mask in self.zero.items():
            gradient = self._weights[name].grad
            if gradient is not None:
                gradient.masked_fill_(mask, 0.0)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Masked weights and all weights, by name."""
        return {name: (int(mask.sum()), mask.numel()) for name, mask in self.zero.items()}


def zeros_of(weights: Mapping[str, torch.nn.Parameter], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Where the named weights are exactly zero now, for those that have a zero: what pruning left."""
    found = {name: weights[name].detach() == 0 for name in names if name in weights}
    return {name: mask for name, mask in found.items() if bool(mask.any())}
