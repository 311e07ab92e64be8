"""What a killed run needs to go on: what came out of the last finished block."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edgeredux.errors import StorageError, one_line
from edgeredux.workspace import sync_path


@dataclass(frozen=True)
class State:
    """What came out of one block: for each batch a tensor (`bare`), or a tuple of tensors and None."""

    bare: bool = True
    batches: dict[int, tuple[torch.Tensor | None, ...]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all. Raises OSError."""
        length = len(next(iter(self.batches.values())))
        tensors = {
            f"{batch}.{place}": value.contiguous()
            for batch, values in self.batches.items()
            for place, value in enumerate(values)
            if value is not None
        }
        said = {"bare": str(int(self.bare)), "length": str(length), "batches": str(len(self.batches))}
        temporary = path.with_suffix(".writing")
        try:
            save_file(tensors, temporary, said)
            sync_path(temporary)
            temporary.replace(path)
        except SafetensorError as problem:
            code = re.search(r"os error (\d+)", str(problem))  # a full disk, say
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from problem
        finally:
            temporary.unlink(missing_ok=True)
        sync_path(path.parent)

    @classmethod
    def load(cls, path: Path) -> State:
        """What `save` wrote. Raises StorageError when it is damaged."""
        try:
            with safe_open(str(path), framework="pt") as handle:
                said = handle.metadata()
                names = set(handle.keys())
                batches = {
                    batch: tuple(
                        handle.get_tensor(f"{batch}.{place}").clone() if f"{batch}.{place}" in names else None
                        for place in range(int(said["length"]))
                    )
                    for batch in range(int(said["batches"]))
                }
        except (SafetensorError, OSError, KeyError) as problem:
            raise StorageError(
                one_line(f"{path}: damaged; delete the folder it is in to begin anew: {problem}")
            ) from problem
        return cls(said["bare"] == "1", batches)
