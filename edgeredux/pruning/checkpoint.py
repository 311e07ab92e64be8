"""Tensors of a safetensors checkpoint, read one by one from where they lie on the disk.

By pread, never by memory map: pages of a mapped file count as the process' memory for as long as the system likes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edgeredux.errors import ModelError, one_line
from edgeredux.sources import weight_files

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_PIECE = 8 << 20  # bytes copied at a time
_COPIED = (".json", ".txt", ".model", ".jinja", ".md")


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: `start` counts from the file's first byte."""

    name: str
    dtype: str  # as safetensors writes it
    shape: tuple[int, ...]
    file: int
    start: int
    size: int  # bytes


class Checkpoint:
    """An open checkpoint folder. Use as a context manager."""

    def __init__(self, folder: Path, text: str) -> None:
        """`text` names the model in messages. Raises ModelError for files that do not hold what they say."""
        self.text = text
        files = weight_files(folder, text)
        for path in files:
            if path.suffix != ".safetensors":
                raise ModelError(f"model {text}: {path.name}: only safetensors are read tensor by tensor")
        self.tensors: Mapping[str, Stored] = {
            stored.name: stored for number, path in enumerate(files) for stored in self._header(path, number)
        }
        self._check_index(folder, [path.name for path in files])
        self._handles = [os.open(path, os.O_RDONLY) for path in files]

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            os.close(handle)
        self._handles = []

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its stored type. Raises ModelError when the file ends early."""
        stored = self.tensors[name]
        raw = torch.empty(stored.size, dtype=torch.uint8)
        if stored.size:
            self._fill(stored, raw, stored.start)
        return raw.view(DTYPES[stored.dtype]).reshape(stored.shape)

    def rows(self, name: str, rows: Sequence[int]) -> torch.Tensor:
        """These rows (first axis) of a tensor, in its stored type."""
        stored = self.tensors[name]
        size = stored.size // stored.shape[0]
        raw = torch.empty(len(rows), size, dtype=torch.uint8)
        for place, row in enumerate(rows):
            self._fill(stored, raw[place], stored.start + row * size)
        return raw.view(DTYPES[stored.dtype]).reshape(len(rows), *stored.shape[1:])

    def pieces(self, name: str) -> Iterator[bytes]:
        """The tensor's bytes, a few megabytes at a time."""
        stored = self.tensors[name]
        for done in range(0, stored.size, _PIECE):
            wanted = min(_PIECE, stored.size - done)
            piece = os.pread(self._handles[stored.file], wanted, stored.start + done)
            if len(piece) < wanted:
                raise ModelError(f"model {self.text}: the file of tensor {name!r} became shorter")
            yield piece

    def _fill(self, stored: Stored, raw: torch.Tensor, start: int) -> None:
        view = raw.numpy().data
        done = 0
        while done < len(view):
            read = os.preadv(self._handles[stored.file], [view[done:]], start + done)
            if read == 0:
                raise ModelError(f"model {self.text}: the file of tensor {stored.name!r} became shorter")
            done += read

    def _header(self, path: Path, number: int) -> Iterator[Stored]:
        """What the file says of its tensors; the safetensors library has checked the header (sources.py)."""
        try:
            with path.open("rb") as handle:
                length = int.from_bytes(handle.read(8), "little")
                header = json.loads(handle.read(length))
            for name, said in header.items():
                if name == "__metadata__":
                    continue
                if said["dtype"] not in DTYPES:
                    allowed = ", ".join(DTYPES)
                    raise ModelError(f"model {self.text}: {name!r} is of type {said['dtype']}. Allowed: {allowed}")
                first, last = said["data_offsets"]
                yield Stored(name, said["dtype"], tuple(said["shape"]), number, 8 + length + first, last - first)
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise ModelError(one_line(f"model {self.text}: {path.name} is no safetensors file: {problem}")) from problem

    def _check_index(self, folder: Path, files: Sequence[str]) -> None:
        path = folder / "model.safetensors.index.json"
        if (folder / "model.safetensors").is_file() or not path.is_file():
            return
        for name, file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items():
            if name not in self.tensors or files[self.tensors[name].file] != file:
                raise ModelError(f"model {self.text}: {file} does not hold tensor {name!r} that the index promises")


def copy_rest(folder: Path, made: Path) -> None:
    """Config, tokenizer, generation config, licence and pooling of the checkpoint, as they are."""
    for path in sorted([*folder.iterdir(), *folder.glob("*_*/config.json")]):
        inside = path.relative_to(folder)
        named = path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
        if not path.is_file() or path.name.endswith(".index.json") or not (path.suffix in _COPIED or named):
            continue
        (made / inside).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, made / inside)
