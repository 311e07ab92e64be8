"""Batches regrouped by length: padding is computed and thrown away, so there should be little of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeredux.model import Interface
from edgeredux.seams import Feed

if TYPE_CHECKING:
    import numpy as np


def singles(interface: Interface, feeds: Sequence[Feed]) -> list[Feed]:
    """The samples of `feeds` one by one, without padding, in order; feeds of a model without a batch axis whole.

    Entries that are no inputs of the model, such as labels, go along by row.
    """
    if not all("batch" in interface.axes[name][:1] for name in interface.input_names):
        return list(feeds)
    return [
        _unpadded(interface, {name: value[row : row + 1] for name, value in feed.items()})
        for feed in feeds
        for row in range(next(iter(feed.values())).shape[0])
    ]


def length(sample: Feed) -> int:
    """Tokens of an unpadded sample; 0 where no attention_mask says what a token is."""
    return int(sample["attention_mask"].sum()) if "attention_mask" in sample else 0


def join(samples: Sequence[Feed]) -> Feed:
    """One batch of unpadded samples, zeros (attention_mask 0) on the right up to the longest."""
    import numpy as np

    if len(samples) == 1:
        return samples[0]
    longest = max(map(length, samples))

    def padded(sample: Feed, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        missing = longest - length(sample)
        if missing == 0 or value.shape[1:2] != sample["attention_mask"].shape[1:2]:
            return value
        return np.pad(value, [(0, 0), (0, missing), *[(0, 0)] * (value.ndim - 2)])

    return {
        name: np.concatenate([sample[name] if _decoder(name) else padded(sample, sample[name]) for sample in samples])
        for name in samples[0]
    }


def by_length(interface: Interface, feeds: Sequence[Feed]) -> list[Feed]:
    """The same samples in batches of the first feed's size, shortest first: fewer padded positions, nothing else."""
    samples = singles(interface, feeds)
    if len(samples) == len(feeds):
        return samples
    return batches(interface, sorted(samples, key=length), next(iter(feeds[0].values())).shape[0])


def batches(interface: Interface, samples: Sequence[Feed], size: int) -> list[Feed]:
    """The samples in their order, at most `size` together; without an attention_mask only those of equal shapes.

    So are decoder_input_ids and their like, which the mask says nothing about. Those of a model without a batch axis
    stay alone.
    """
    if not all("batch" in interface.axes[name][:1] for name in interface.input_names):
        return list(samples)
    found: list[list[Feed]] = []
    for sample in samples:
        last = found[-1] if found else []
        if last and len(last) < size and _shapes(last[0]) == _shapes(sample):
            last.append(sample)
        else:
            found.append([sample])
    return [join(batch) for batch in found]


def _shapes(sample: Feed) -> dict[str, tuple[int, ...]]:
    """What must be equal for samples to be joined."""
    masked = "attention_mask" in sample
    return {name: value.shape for name, value in sample.items() if not masked or _decoder(name)}


def _decoder(name: str) -> bool:
    return name.startswith("decoder_")


def _unpadded(interface: Interface, sample: Feed) -> Feed:
    if "attention_mask" not in sample:
        return sample
    real = sample["attention_mask"][0].astype(bool)
    token = {name: interface.axes.get(name, ())[1:2] == ("sequence",) for name in sample}
    return {name: value[:, real] if token[name] and not _decoder(name) else value for name, value in sample.items()}
