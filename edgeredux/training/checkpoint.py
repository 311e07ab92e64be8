"""A run on disk, all of it: weights, buffers, optimizer, masks, callbacks, random numbers. All there or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edgeredux.errors import ModelError, one_line
from edgeredux.training.callback import Callback, Run


def write_atomically(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file that a kill leaves whole or absent."""
    temporary = path.with_suffix(".writing")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, dict(metadata))
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename, too
    finally:
        os.close(folder)


def save(
    path: Path,
    run: Run,
    history: Sequence[float],
    buffers: Mapping[str, torch.Tensor],
    callbacks: Sequence[Callback],
    identity: str,
) -> None:
    """Write the run as it stands after `run.step` + 1 updates."""
    tensors: dict[str, torch.Tensor] = {
        "history": torch.tensor(history, dtype=torch.float64),
        "random:cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors["random:cuda"] = torch.cuda.get_rng_state()
    for name, value in run.weights.items():
        tensors[f"weight:{name}"] = value
        for key, state in run.optimizer.state.get(value, {}).items():
            if isinstance(state, torch.Tensor):  # SGD without momentum keeps None
                tensors[f"optimizer.{key}:{name}"] = state
    tensors |= {f"buffer:{name}": value for name, value in buffers.items()}
    tensors |= {f"mask:{name}": value for name, value in run.masks.zero.items()}
    for place, callback in enumerate(callbacks):
        tensors |= {f"callback.{place}:{name}": value for name, value in callback.state().items()}
    names = ",".join(callback.name for callback in callbacks)
    # safetensors refuses tensors that share memory; those of one run may (tied weights are one parameter already).
    whole = {name: value.detach().clone() for name, value in tensors.items()}
    write_atomically(path, whole, {"step": str(run.step + 1), "identity": identity, "callbacks": names})


def restore(
    path: Path, run: Run, buffers: Mapping[str, torch.Tensor], callbacks: Sequence[Callback], identity: str
) -> list[float] | None:
    """Put the checkpoint's state into the run; the losses so far, or None when there is no checkpoint.

    Raises ModelError when the file is damaged or belongs to another run.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as handle:
            said = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as problem:
        raise ModelError(one_line(f"checkpoint {path}: damaged, delete it to begin anew: {problem}")) from problem
    names = ",".join(callback.name for callback in callbacks)
    if said.get("identity") != identity or said.get("callbacks") != names:
        raise ModelError(f"checkpoint {path}: it belongs to a run with other settings; delete it to begin anew")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for full, value in tensors.items():
        kind, _, name = full.partition(":")
        parts.setdefault(kind, {})[name] = value
    missing = set(run.weights) ^ set(parts.get("weight", {}))
    if missing:
        raise ModelError(f"checkpoint {path}: it holds other weights, first {min(missing)!r}; delete it to begin anew")
    with torch.no_grad():
        for name, weight in run.weights.items():
            weight.copy_(parts["weight"][name])
        for name, buffer in buffers.items():
            buffer.copy_(parts["buffer"][name])
        for kind, values in parts.items():
            where, _, key = kind.partition(".")
            for name, value in values.items() if where == "optimizer" else ():
                weight = run.weights[name]
                # AdamW counts its steps on the CPU.
                run.optimizer.state[weight][key] = value if key == "step" else value.to(weight.device)
    for name, value in parts.get("mask", {}).items():
        run.masks.zero[name] = value.to(run.weights[name].device)
    for place, callback in enumerate(callbacks):
        callback.load(parts.get(f"callback.{place}", {}))
    torch.set_rng_state(parts["random"]["cpu"])
    if "cuda" in parts["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(parts["random"]["cuda"])
    run.step = int(said["step"])
    return list(parts["history"][""].tolist())
