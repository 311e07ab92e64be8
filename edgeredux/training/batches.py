"""Which samples a step sees: a function of seed and step alone, so that a resumed run agrees."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeredux.batching import join, length
from edgeredux.seams import Feed

_WINDOW = 16  # batches that are sorted by length together: wide enough to save padding, narrow enough to stay random


class Batches:
    """Shuffled batches of samples of similar length, without end: every epoch shows each sample at most once.

    A last, smaller batch of an epoch is left out; the next shuffle brings other samples there.
    """

    def __init__(self, samples: Sequence[Feed], batch_size: int, seed: int) -> None:
        self.samples = samples
        self.size = min(batch_size, len(samples))
        self._seed = seed
        self._epoch: tuple[int, list[list[int]]] | None = None

    def places(self, number: int) -> list[int]:
        """Indices of the samples of batch `number`."""
        per_epoch = len(self.samples) // self.size
        epoch, place = divmod(number, per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        return self._epoch[1][place]

    def _order(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(self.samples), generator=generator).tolist()
        whole = len(shuffled) // self.size * self.size
        batches: list[list[int]] = []
        for start in range(0, whole, _WINDOW * self.size):
            window = shuffled[start : min(start + _WINDOW * self.size, whole)]
            window.sort(key=lambda index: length(self.samples[index]))
            batches += [window[begin : begin + self.size] for begin in range(0, len(window), self.size)]
        return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]

    def __call__(self, number: int) -> Feed:
        """Batch `number`, padded to its longest sample."""
        return join([self.samples[place] for place in self.places(number)])
