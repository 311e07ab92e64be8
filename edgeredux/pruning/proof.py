"""Proof on real inputs that a unit is connected with its own columns of the reader and with nothing else.

NaN spreads to everything that depends on it. A unit's outputs become NaN in its writers; if exactly its columns are
NaN where the reader reads, removing both removes all of it. The reader is then fed zeros for NaN, so that all groups
of a model are tried in the same forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgeredux.model import Model
from edgeredux.pruning.groups import Group
from edgeredux.seams import Feed


def disproved(model: Model, groups: Sequence[Group], feed: Feed) -> dict[str, str]:
    """Why a group may not lose units, by its reader; empty when all are proven. The first and last unit are tried."""
    wrong: dict[str, str] = {}
    for unit in (0, -1):
        wrong = _tried(model, groups, feed, unit) | wrong
    return wrong


def _tried(model: Model, groups: Sequence[Group], feed: Feed, unit: int) -> dict[str, str]:
    wrong = {group.reader: "the calibration data never reaches it" for group in groups}
    reached: set[str] = set()  # a reader that runs more than once must be right each time

    def poison(rows: torch.Tensor) -> Any:
        def hook(_: torch.nn.Module, given: Any, made: torch.Tensor) -> torch.Tensor:
            return made.index_fill(-1, rows.to(made.device), float("nan"))

        return hook

    def look(group: Group) -> Any:
        def hook(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            ill = torch.isnan(given[0]).flatten(0, -2).any(0).nonzero()[:, 0].cpu()
            if group.reader not in reached:
                reached.add(group.reader)
                del wrong[group.reader]
            if not torch.equal(ill, group.columns[unit].sort().values):
                wrong[group.reader] = f"a unit of {', '.join(group.writers)} reaches {len(ill)} of its inputs"
            return (torch.nan_to_num(given[0]), *given[1:])

        return hook

    handles = []
    for group in groups:
        for name, rows in group.writers.items():
            handles.append(model.module.get_submodule(name).register_forward_hook(poison(rows[unit])))
        handles.append(model.module.get_submodule(group.reader).register_forward_pre_hook(look(group)))
    try:
        with torch.no_grad():
            model.forward({name: torch.from_numpy(value) for name, value in feed.items()})
    finally:
        for handle in handles:
            handle.remove()
    return wrong
