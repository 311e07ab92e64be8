"""The loop: batches in, updates out, masks exact after each, resumable to the byte.

weights = trainable(module, embeddings=False)
history = train(Settings(steps=100, learning_rate=2e-4), weights, Batches(samples, 16, seed), loss, ...)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from edgeredux.errors import ModelError
from edgeredux.seams import Feed, Progress, silent
from edgeredux.training import checkpoint as files
from edgeredux.training.callback import Callback, Run
from edgeredux.training.masks import Masks
from edgeredux.training.schedule import share
from edgeredux.training.settings import Settings


def train(
    settings: Settings,
    weights: Mapping[str, torch.nn.Parameter],
    batches: Callable[[int], Feed],
    loss: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    zero: Mapping[str, torch.Tensor] | None = None,
    buffers: Mapping[str, torch.Tensor] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Progress = silent,
    label: str = "training",
) -> list[float]:
    """Train `weights` in place; the loss of each update, mean of its batches.

    `batches(number)` gives batch 0, 1, 2, ... as arrays (`Batches`); `loss` a scalar for a batch of tensors on the
    weights' device. `optimizer` takes the place of the settings' own. `zero` masks weights from the start (True =
    zero). `buffers` are the module's (batch normalisation), kept in checkpoints. With `checkpoint`, a killed run goes
    on from that file (`identity` names the run: a checkpoint of another one is refused) and ends with the same bytes
    as one that was not killed, on the same machine and thread count. Afterwards no gradient is left. Raises ModelError
    when the loss is NaN or infinite.
    """
    if not weights:
        raise ModelError(f"{label}: no weight is left to train")
    made = settings.make_optimizer(weights.values()) if optimizer is None else optimizer
    run = Run(settings, weights, Masks(weights, zero or {}), made)
    buffers = buffers or {}
    device = next(iter(weights.values())).device
    history = None if checkpoint is None else files.restore(checkpoint, run, buffers, callbacks, identity)
    if history is None:
        history = []
        for callback in callbacks:
            callback.on_start(run)
    for step in range(run.step, settings.steps):
        run.step = step
        run.learning_rate = settings.learning_rate * share(settings.schedule, step, settings.steps, settings.warmup)
        for group in run.optimizer.param_groups:
            group["lr"] = run.learning_rate
        run.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for part in range(settings.accumulate):
            feed = {
                name: torch.from_numpy(array).to(device)
                for name, array in batches(step * settings.accumulate + part).items()
            }
            with _precision(settings, device):
                answer = loss(feed) / settings.accumulate
            value += float(answer.detach())
            if not math.isfinite(value):
                raise ModelError(f"{label}: the loss is not finite at step {step}; lower learning_rate")
            answer.backward()  # type: ignore[no-untyped-call]
        _update(run, callbacks)
        history.append(value)
        progress(f"{label} loss {value:.4f}", step + 1, settings.steps)
        if checkpoint is not None and (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.steps:
            files.save(checkpoint, run, history, buffers, callbacks, identity)
    run.optimizer.zero_grad(set_to_none=True)
    return history


def _update(run: Run, callbacks: Sequence[Callback]) -> None:
    """One optimizer step from the gradients that are there."""
    for callback in callbacks:
        callback.on_gradients(run)
    run.masks.clear_gradients()
    if run.settings.clip > 0:
        torch.nn.utils.clip_grad_norm_(run.weights.values(), run.settings.clip, foreach=False)
    run.optimizer.step()
    run.masks.fill()
    with torch.no_grad():
        for callback in callbacks:
            callback.on_step(run)
        if callbacks:
            run.masks.fill()


def _precision(settings: Settings, device: torch.device) -> AbstractContextManager[object]:
    if settings.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def tenths(history: Sequence[float]) -> tuple[float, float]:
    """Mean loss over the first and the last tenth of the updates."""
    size = max(1, len(history) // 10)
    return sum(history[:size]) / size, sum(history[-size:]) / size
