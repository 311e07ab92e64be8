"""Tensors kept on disk that say what they were made of and what they hold, so that nothing else is taken for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from edgeredux.errors import DataError, one_line
from edgeredux.model import Model
from edgeredux.seams import Feed
from edgeredux.training.checkpoint import write_atomically


def key_of(what: str, model: Model, samples: Sequence[Feed]) -> str:
    """Hex SHA-256 of the words, the model's task and every weight and buffer, and the samples' inputs."""
    digest = hashlib.sha256()
    digest.update(f"{what}; {model.task} {model.pooling}".encode())
    for name, value in model.module.state_dict().items():
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        digest.update(_bytes(value.detach().cpu()))
    for sample in samples:
        for name in model.input_names:
            digest.update(f"{name} {sample[name].shape} {sample[name].dtype}".encode())
            digest.update(np.ascontiguousarray(sample[name]).data)
    return digest.hexdigest()


def write(path: Path, tensors: Mapping[str, torch.Tensor], key: str) -> None:
    """Write the tensors with their key and their hash; a kill leaves the whole file or none."""
    write_atomically(path, tensors, {"key": key, "sha256": _hash(tensors)})


def read(path: Path, key: str) -> dict[str, torch.Tensor]:
    """The tensors that `write` wrote under this key. Raises DataError for any other file."""
    try:
        with safe_open(str(path), framework="pt") as handle:
            said = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as problem:
        raise DataError(one_line(f"cache {path}: damaged, delete it: {problem}")) from problem
    if said.get("key") != key:
        raise DataError(f"cache {path}: it was made of another teacher, data or losses; delete it")
    if said.get("sha256") != _hash(tensors):
        raise DataError(f"cache {path}: its contents are not what was written; delete it")
    return tensors


def _hash(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(json.dumps([name, list(value.shape), str(value.dtype)]).encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: torch.Tensor) -> memoryview:
    return value.contiguous().view(-1).view(torch.uint8).numpy().data
