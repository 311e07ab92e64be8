"""In which order units (FFN neurons, heads) stand best for tiles: more score is kept at the same number of zeros.

The bands of a matrix that makes the units are runs of neighbouring rows: units that read the same inputs belong in one
band. The blocks of the matrix that reads them are runs of neighbouring columns: units that the same outputs need
belong in one block. Both are improved in turns, as k-means is: with what is kept held fixed, units change places where
that is worth most; with the places held fixed, the best blocks are kept. Neither can lower what is kept, so it ends.
(The idea of permuting for blocks: Ji et al. 2018, Tetris, NeurIPS; the alternation here is our own.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgeredux.sparsity.counts import smallest

_TURNS = 30


@dataclass(frozen=True)
class Made:
    """A matrix that makes the units: `scores` [units, rows of a unit, input blocks], `bands` [places, rows of a unit].

    `bands` says in which band each row of a place is; each band keeps `kept` input blocks.
    """

    scores: torch.Tensor
    bands: torch.Tensor
    kept: int


@dataclass(frozen=True)
class Read:
    """The matrix that reads them: `scores` [units, bands] sums its rows by band; each keeps `kept` blocks of units."""

    scores: torch.Tensor
    block: int
    kept: int


def total_kept(order: torch.Tensor, made: Sequence[Made], read: Read | None) -> float:
    """The score that is kept when unit order[p] stands at place p and every band keeps its best blocks."""
    total = sum(float((_made_sums(order, one) * _made_mask(order, one)).sum()) for one in made)
    if read is not None:
        sums = _read_sums(order, read)
        total += float((sums * _best(sums, read.kept)).sum())
    return total


def best_order(units: int, made: Sequence[Made], read: Read | None) -> torch.Tensor:
    """A permutation [units], int64: which unit comes to each place. The identity where nothing better is found."""
    start = torch.arange(units)
    starts = [start]
    for one in made[:1]:  # neighbours along the direction in which the units' reading differs most
        profile = one.scores.sum(1)
        profile = profile / profile.sum(1, keepdim=True).clamp_min(1e-30)
        _, _, directions = torch.linalg.svd(profile - profile.mean(0), full_matrices=False)
        first = directions[0] * torch.sign(directions[0].sum() + 1e-30)
        starts.append(torch.argsort((profile - profile.mean(0)) @ first, stable=True))
    found = [_fill_blocks(_share_bands(order, made), made, read) for order in starts]
    return max([start, *found], key=lambda order: total_kept(order, made, read))


def _share_bands(order: torch.Tensor, made: Sequence[Made]) -> torch.Tensor:
    """`order` with units moved between bands until nothing more is kept."""
    if not made:
        return order
    kinds, place_kind = torch.unique(torch.cat([one.bands for one in made], 1), dim=0, return_inverse=True)
    best, best_total = order, total_kept(order, made, None)
    for _ in range(_TURNS):
        value = torch.zeros(len(order), len(kinds))
        column = 0
        for one in made:
            mask = _made_mask(best, one).to(one.scores.dtype)  # [bands, blocks]
            for row in range(one.bands.shape[1]):
                value += one.scores[:, row] @ mask[kinds[:, column]].T
                column += 1
        fresh = _placed(best, place_kind, value)
        total = total_kept(fresh, made, None)
        if total <= best_total * (1 + 1e-9):
            break
        best, best_total = fresh, total
    return best


def _fill_blocks(order: torch.Tensor, made: Sequence[Made], read: Read | None) -> torch.Tensor:
    """`order` with units moved within their bands until the blocks of the reader keep no more."""
    if read is None:
        return order
    if made:
        _, home = torch.unique(torch.cat([one.bands for one in made], 1), dim=0, return_inverse=True)
    else:
        home = torch.zeros(len(order), dtype=torch.int64)
    strongest = torch.argsort(read.scores[order].sum(1), descending=True, stable=True)
    by_strength = order.clone()
    for kind in home.unique():
        places = (home == kind).nonzero()[:, 0]
        by_strength[places] = order[strongest[home[strongest] == kind]]
    found = [order]
    for start in (order, by_strength):
        best, best_total = start, total_kept(start, (), read)
        for _ in range(_TURNS):
            mask = _best(_read_sums(best, read), read.kept)  # [bands, blocks]
            kinds, block_kind = torch.unique(mask.T, dim=0, return_inverse=True)
            place_kind = block_kind.repeat_interleave(read.block) + home * len(kinds)
            within = read.scores @ kinds.T.to(read.scores.dtype)
            elsewhere = torch.full((len(order), int(home.max()) + 1, len(kinds)), -torch.inf)
            elsewhere[best, home] = within[best]
            fresh = _placed(best, place_kind, elsewhere.flatten(1))
            total = total_kept(fresh, (), read)
            if total <= best_total * (1 + 1e-9):
                break
            best, best_total = fresh, total
        found.append(best)
    return max(found, key=lambda tried: total_kept(tried, (), read))


def _placed(order: torch.Tensor, place_kind: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Units to places so that the sum of value[unit, kind of its place] rises: kinds share out their units pairwise.

    For two kinds the best sharing is by the difference of the values; -inf forbids.
    """
    order = order.clone()
    present = sorted(set(place_kind.tolist()))
    for index, first in enumerate(present):
        for second in present[index + 1 :]:
            here, there = (place_kind == first).nonzero()[:, 0], (place_kind == second).nonzero()[:, 0]
            places = torch.cat([here, there])
            pool = order[places]
            gain = value[pool, first] - value[pool, second]
            if torch.isnan(gain).any() or bool(torch.isinf(gain).any()):
                continue  # bands that share no unit
            ranked = torch.argsort(gain, descending=True, stable=True)
            order[here], order[there] = pool[ranked[: len(here)]], pool[ranked[len(here) :]]
    return order


def _made_sums(order: torch.Tensor, made: Made) -> torch.Tensor:
    """[bands, input blocks]"""
    rows = made.scores[order].flatten(0, 1)
    sums = torch.zeros(int(made.bands.max()) + 1, rows.shape[1], dtype=rows.dtype)
    return sums.index_add_(0, made.bands.flatten(), rows)


def _made_mask(order: torch.Tensor, made: Made) -> torch.Tensor:
    return _best(_made_sums(order, made), made.kept)


def _read_sums(order: torch.Tensor, read: Read) -> torch.Tensor:
    """[bands, blocks of units]"""
    return read.scores[order].T.reshape(read.scores.shape[1], -1, read.block).sum(-1)


def _best(sums: torch.Tensor, kept: int) -> torch.Tensor:
    return ~smallest(sums, sums.shape[1] - kept)
