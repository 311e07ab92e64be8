"""What the command wrote, read again by other means than its own: safetensors and stock transformers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

_PRUNED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, file by file, one in memory at a time; the index says the same as the files."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    promised = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else {}
    for path in files:
        with safe_open(str(path), framework="pt") as handle:
            for name in list(handle.keys()):
                if promised and promised.pop(name) != path.name:
                    raise SystemExit(f"{folder}: the index names another file for {name}")
                yield name, handle.get_tensor(name)
    if promised:
        raise SystemExit(f"{folder}: {next(iter(promised))} is in the index and in no file")


def digests(folder: Path, blocks: list[str]) -> dict[str, str]:
    """SHA-256 of every tensor of these blocks."""
    return {
        name: hashlib.sha256(value.contiguous().view(torch.uint8).numpy().data).hexdigest()
        for name, value in tensors(folder)
        if any(name.startswith(f"{block}.") for block in blocks)
    }


def compare(dense: Path, pruned: Path, share: float) -> list[str]:
    """What is wrong with the pruned checkpoint: names, types, shapes, counts of zeros, values; all of it, in words."""
    wrong: list[str] = []
    before = {name: (path, value.shape, value.dtype) for path, name, value in _placed(dense)}
    seen = set()
    for name, value in tensors(pruned):
        seen.add(name)
        if name not in before or (value.shape, value.dtype) != before[name][1:]:
            wrong.append(f"{name}: not in the dense checkpoint with this shape and type")
            continue
        zeros = int((value == 0).sum())
        if name.split(".")[-2] in _PRUNED:
            wanted = math.floor(share * value.numel())
            if zeros != wanted:
                wrong.append(f"{name}: {zeros} zeros, {wanted} were asked for")
            if not bool(torch.isfinite(value).all()):
                wrong.append(f"{name}: holds values that are not finite")
        else:
            with safe_open(str(before[name][0]), framework="pt") as handle:
                if not torch.equal(handle.get_tensor(name), value):
                    wrong.append(f"{name}: was not to be pruned and has changed")
    return wrong + [f"{name}: is missing" for name in sorted(set(before) - seen)]


def loads(folder: Path, text: str) -> float:
    """The loss of stock transformers on a text. Raises SystemExit when weights are missing or left over."""
    module, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    if any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise SystemExit(f"transformers loads {folder} otherwise than written: {info}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    given: Any = tokenizer(text, return_tensors="pt")["input_ids"][:, :32]
    with torch.no_grad():
        loss = float(module(input_ids=given, labels=given).loss)
    if not math.isfinite(loss):
        raise SystemExit(f"transformers computes a loss of {loss} with {folder}")
    return loss


def _placed(folder: Path) -> Iterator[tuple[Path, str, torch.Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as handle:
            for name in list(handle.keys()):
                yield path, name, handle.get_tensor(name)
