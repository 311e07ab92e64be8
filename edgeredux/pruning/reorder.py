"""FFN neurons and attention heads put in an order in which tiles keep more: the function stays the same.

A neuron is a row of the matrices that make it and a column of the one that reads it; moving it in all of them changes
nothing but the order in which its products are added.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edgeredux.errors import ModelError
from edgeredux.model import Model
from edgeredux.pruning.groups import Group, find, places
from edgeredux.pruning.order_search import Made, Read, best_order, total_kept
from edgeredux.pruning.places import Place, inputs
from edgeredux.pruning.proof import disproved
from edgeredux.seams import Feed
from edgeredux.sparsity.counts import count_of
from edgeredux.sparsity.patterns import Pattern


def reordered(
    model: Model, scores: Mapping[str, torch.Tensor], pattern: Pattern, zeros: float, feed: Feed
) -> tuple[Model, dict[str, Any]]:
    """The same function with units in a better order for `pattern` (tile), and by reader the share of score kept.

    `scores` are the element scores [outputs, inputs] of the layers that will be pruned. Groups that the input `feed`
    does not prove to be coupled in just this way stay as they are. Raises ModelError when the outputs change.
    """
    groups = [group for group in find(model.module) if not group.tie]
    wrong = disproved(model, groups, feed)
    student = model.after(copy.deepcopy(model.module).eval(), "reordered")
    said: dict[str, Any] = {}
    with torch.no_grad():
        for group in groups:
            if group.reader in wrong:
                continue
            made = [_made(scores[name], rows, pattern, zeros) for name, rows in group.writers.items() if name in scores]
            read = _read(scores[group.reader], group, pattern, zeros) if group.reader in scores else None
            if not made and read is None:
                continue
            order = best_order(group.units, made, read)
            stood = torch.arange(group.units)
            if torch.equal(order, stood):
                continue
            whole = sum(float(one.scores.sum()) for one in made) + (0.0 if read is None else float(read.scores.sum()))
            before, after = total_kept(stood, made, read) / whole, total_kept(order, made, read) / whole
            everything = [*places(student.module, group), inputs(student.module, group.reader, group.columns)]
            _move(student.module, everything, order)
            said[group.reader] = {"kept_before": round(before, 4), "kept_after": round(after, 4)}
    _same(model, student, feed)
    return student, said


def _made(scores: torch.Tensor, rows: torch.Tensor, pattern: Pattern, zeros: float) -> Made:
    outputs, columns = scores.shape
    blocks = scores.reshape(outputs, columns // pattern.width, pattern.width).sum(-1)
    bands = rows // (outputs // pattern.bands)
    return Made(blocks[rows], bands, _kept(columns, pattern, zeros))


def _read(scores: torch.Tensor, group: Group, pattern: Pattern, zeros: float) -> Read | None:
    if group.width > 1:
        return None  # a head's columns move together, and are whole blocks
    outputs, columns = scores.shape
    bands = scores.reshape(pattern.bands, outputs // pattern.bands, columns).sum(1)
    return Read(bands[:, group.columns[:, 0]].T.contiguous(), pattern.width, _kept(columns, pattern, zeros))


def _kept(columns: int, pattern: Pattern, zeros: float) -> int:
    blocks = columns // pattern.width
    return blocks - count_of(zeros, blocks)


def _move(module: torch.nn.Module, everything: Sequence[Place], order: torch.Tensor) -> None:
    """Unit order[p] to place p, in every parameter, in place."""
    tensors = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
    for place in everything:
        value = tensors[place.tensor]
        moved = value.index_select(place.dim, place.index[order].flatten())
        value.index_copy_(place.dim, place.index.flatten(), moved)


def _same(before: Model, after: Model, feed: Feed) -> None:
    given, wanted = after.run(feed), before.run(feed)
    for name, value in wanted.items():
        # Sums in another order differ in the last bits of float32; a wrong move changes the output by its own size.
        largest = float(abs(value).max()) or 1.0
        if not float(abs(given[name] - value).max()) <= 1e-3 * largest:
            raise ModelError(f"prune: units of {before.name} cannot be put in another order; leave `reorder` out")
