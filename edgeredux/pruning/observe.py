"""What flows into and out of chosen Linears while calibration data passes: padding left out, NaN refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

from edgeredux.errors import DataError, ModelError
from edgeredux.model import Model
from edgeredux.seams import Feed


class _Seen(Exception):
    """All wanted modules have run; the rest of the forward pass is left out."""


def observe(
    model: Model,
    names: Sequence[str],
    feeds: Sequence[Feed],
    see: Callable[[str, torch.Tensor, torch.Tensor], None],
    until: str | None = None,
) -> None:
    """Call see(name, inputs, outputs) for every pass through a named module, both as [positions, features].

    Positions that attention_mask calls padding are left out. Each forward pass ends after module `until`, if given.
    Raises DataError without feeds, ModelError for NaN or infinite activations.
    """
    if not feeds:
        raise DataError("pruning: there is no calibration data")
    real: list[torch.Tensor | None] = [None]

    def rows(value: torch.Tensor) -> torch.Tensor:
        flat = value.detach().reshape(-1, value.shape[-1])
        # Only per-token values line up with the mask; a pooled [batch, width] does not.
        return flat[real[0]] if real[0] is not None and len(real[0]) == len(flat) else flat

    def hook(name: str) -> Any:
        def take(_: torch.nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
            inputs = rows(given[0])
            if not bool(torch.isfinite(inputs).all()):
                raise ModelError(f"pruning: the activations at {name} are NaN or infinite on the calibration data")
            see(name, inputs, rows(made))

        return take

    def stop(*_: Any) -> None:
        raise _Seen

    parts = dict(model.module.named_modules())
    handles = [parts[name].register_forward_hook(hook(name)) for name in names]
    if until is not None:
        handles.append(parts[until].register_forward_hook(stop))
    try:
        for feed in feeds:
            tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
            real[0] = tensors["attention_mask"].bool().reshape(-1) if "attention_mask" in tensors else None
            with suppress(_Seen), torch.no_grad():
                model.forward(tensors)
    finally:
        for handle in handles:
            handle.remove()
