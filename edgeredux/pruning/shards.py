"""A safetensors checkpoint of known shapes, filled in tensor by tensor, in any order, as often as one likes.

Headers and places are settled before the first byte is written, so a tensor written again after a kill lies where it
lay, and the finished files do not show that there was one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edgeredux.pruning.checkpoint import DTYPES, Stored
from edgeredux.workspace import sync_path, write_atomic

_ALIGNMENT = 8


@dataclass(frozen=True)
class _Place:
    file: str
    start: int
    size: int


class Shards:
    """The files of a checkpoint in `folder`, at most `limit` bytes of tensors each (one tensor is never cut)."""

    def __init__(self, folder: Path, tensors: Sequence[Stored], limit: int) -> None:
        self.folder = folder
        parts: list[list[Stored]] = [[]]
        for stored in tensors:
            if parts[-1] and sum(other.size for other in parts[-1]) + stored.size > limit:
                parts.append([])
            parts[-1].append(stored)
        total = len(parts)
        names = [f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)]
        self.files = names if total > 1 else ["model.safetensors"]
        self._unsynced: set[str] = set()
        self._places: dict[str, _Place] = {}
        self._headers: dict[str, tuple[bytes, int]] = {}
        for file, part in zip(self.files, parts, strict=True):
            self._lay_out(file, part)

    def create(self) -> None:
        """Files with their headers, tensors all zero; and the index where there is more than one file.

        Their place on the disk is taken at once: OSError now and not after hours when there is not enough of it.
        """
        for file, (header, size) in self._headers.items():
            with (self.folder / file).open("wb") as handle:
                handle.write(header)
                handle.flush()
                if hasattr(os, "posix_fallocate"):  # macOS has none
                    os.posix_fallocate(handle.fileno(), 0, len(header) + size)
                handle.truncate(len(header) + size)
        if len(self.files) > 1:
            said = {
                "metadata": {"total_size": sum(size for _, size in self._headers.values())},
                "weight_map": {name: place.file for name, place in sorted(self._places.items())},
            }
            write_atomic(self.folder / "model.safetensors.index.json", json.dumps(said, indent=2) + "\n")

    def write(self, name: str, pieces: Iterable[bytes]) -> None:
        """Fill in one tensor from its bytes; on the disk for certain after the next `sync`."""
        place = self._places[name]
        done = 0
        handle = os.open(self.folder / place.file, os.O_WRONLY)
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    written = os.pwrite(handle, view, place.start + done)
                    view, done = view[written:], done + written
        finally:
            os.close(handle)
        assert done == place.size
        self._unsynced.add(place.file)

    def write_tensor(self, name: str, value: torch.Tensor, dtype: str) -> None:
        """Fill in one tensor, in the type that the checkpoint has it in."""
        raw = value.detach().to(DTYPES[dtype]).contiguous().flatten().view(torch.uint8)
        self.write(name, [raw.numpy().data])  # type: ignore[list-item]

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        for file in sorted(self._unsynced):
            sync_path(self.folder / file)
        self._unsynced.clear()

    def _lay_out(self, file: str, part: Sequence[Stored]) -> None:
        # Wide types first keep every tensor aligned to its own width.
        ordered = sorted(part, key=lambda stored: -DTYPES[stored.dtype].itemsize)
        said: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for stored in ordered:
            offsets = [offset, offset + stored.size]
            said[stored.name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": offsets}
            offset += stored.size
        text = json.dumps(said, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        header = len(text).to_bytes(8, "little") + text
        self._headers[file] = (header, offset)
        place = len(header)
        for stored in ordered:
            self._places[stored.name] = _Place(file, place, stored.size)
            place += stored.size
