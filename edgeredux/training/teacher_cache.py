"""The teacher's answers on disk: computed once, kept through a kill, verified when read, never mixed up.

    <folder>/<key>/00000.safetensors ...    digests of 256 samples each, "<sample>:<loss>:<name>", unpadded

`key` is the SHA-256 of all that the answers depend on: the teacher's weights, its precision, the samples, and what the
losses keep. Another teacher, data or loss is another folder. Every file is verified before it is used (verified.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from edgeredux.batching import join, length
from edgeredux.seams import Feed, Progress, silent
from edgeredux.training.batches import Batches
from edgeredux.training.objective import PREFIX, Objective
from edgeredux.training.verified import read, write

_SHARD = 256


def describe(objective: Objective, precision: str) -> str:
    """What the losses keep of the teacher, in words that go into the key."""
    parts = [precision]
    for loss, term in objective.terms.items():
        if term.needs_teacher:
            # The factor in the sum changes nothing that is kept.
            options = {name: getattr(term, name) for name in term.__dataclass_fields__ if name != "weight"}
            parts.append(f"{loss} {sorted(options.items())}")
    return "; ".join(parts)


class TeacherCache:
    """Batches with the teacher's digests beside the inputs, as `train` takes them."""

    def __init__(self, folder: Path, key: str, objective: Objective, batches: Batches, *, half: bool = False) -> None:
        """`half` keeps floating-point digests in bfloat16, which loses nothing of a bfloat16 teacher's states."""
        self._folder = folder / key
        self._key = key
        self._objective = objective
        self._batches = batches
        self._half = half
        self._open: dict[int, Any] = {}

    def fill(self, progress: Progress = silent) -> int:
        """Compute what is not there; how many samples that were. What is there is verified first."""
        self._folder.mkdir(parents=True, exist_ok=True)
        samples = self._batches.samples
        device = next(self._objective.teacher.module.parameters()).device
        computed = 0
        for start in range(0, len(samples), _SHARD):
            places = range(start, min(start + _SHARD, len(samples)))
            path = self._path(start // _SHARD)
            if path.is_file():
                read(path, self._key)
            else:
                tensors: dict[str, torch.Tensor] = {}
                order = sorted(places, key=lambda place: length(samples[place]))
                for begin in range(0, len(order), self._batches.size):
                    chosen = order[begin : begin + self._batches.size]
                    feed = join([samples[place] for place in chosen])
                    given = {name: torch.from_numpy(value).to(device) for name, value in feed.items()}
                    for name, value in self._objective.digest(given).items():
                        for row, place in enumerate(chosen):
                            tensors[f"{place}:{name}"] = self._packed(_cut(value[row], samples[place], feed))
                write(path, tensors, self._key)
                computed += len(places)
            progress("teacher's answers", places.stop, len(samples))
        return computed

    def __call__(self, number: int) -> Feed:
        """Batch `number` with "teacher:<loss>:<name>" entries, padded with zeros like the inputs."""
        feed = self._batches(number)
        rows = [self._read(place) for place in self._batches.places(number)]
        for name in rows[0]:
            values = [row[name] for row in rows]
            longest = max(value.shape[0] for value in values) if values[0].ndim else 0
            padded = [
                np.pad(value, [(0, longest - value.shape[0]), *[(0, 0)] * (value.ndim - 1)]) if value.ndim else value
                for value in values
            ]
            feed[PREFIX + name] = np.stack(padded)
        return feed

    def _path(self, shard: int) -> Path:
        return self._folder / f"{shard:05d}.safetensors"

    def _packed(self, value: torch.Tensor) -> torch.Tensor:
        value = value.detach().cpu()
        value = value.to(torch.bfloat16) if self._half and value.is_floating_point() else value
        return value.contiguous().clone()

    def _read(self, place: int) -> dict[str, np.ndarray[Any, Any]]:
        shard = place // _SHARD
        if shard not in self._open:
            handle = safe_open(str(self._path(shard)), framework="pt")
            names: dict[int, list[str]] = {}
            for full in handle.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118 - no mapping
                names.setdefault(int(full.partition(":")[0]), []).append(full)
            self._open[shard] = (handle, names)
        handle, names = self._open[shard]
        found = {full.partition(":")[2]: handle.get_tensor(full) for full in sorted(names[place])}
        return {name: (v.float() if v.is_floating_point() else v).numpy() for name, v in found.items()}


def _cut(value: torch.Tensor, sample: Feed, feed: Feed) -> torch.Tensor:
    """One sample's row without the padding of its batch, if the row has a token axis."""
    if "attention_mask" not in feed or value.ndim < 2 or value.shape[0] != feed["attention_mask"].shape[1]:
        return value
    return value[: length(sample)]
