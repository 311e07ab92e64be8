"""Distillation from the dense model, resumable to the byte."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from safetensors import safe_open
from safetensors.torch import save_file

from edgeredux.artifact import Change
from edgeredux.batching import join, length, singles
from edgeredux.distillation import losses as terms
from edgeredux.distillation.hooks import hooks_restored
from edgeredux.errors import DataError, ModelError, RecipeError, unknown
from edgeredux.model import Model
from edgeredux.seams import Feed, ReduceContext

_BETAS = (0.9, 0.999)
_WINDOW = 16  # batches that are sorted by length together: wide enough to save padding, narrow enough to stay random


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Distill:
    """Train the reduced model to repeat the dense one on unlabelled data, AdamW, linear warm-up then linear decay.

    `losses` weighs them (default: all the task has, 1 each): embedding and hidden for embeddings, logits (soft labels
    at `temperature`) and hidden for classifiers and language models, output for anything else. Exact zeros that
    pruning left in Linear weights stay exact zeros (`keep_zeros`). Embedding tables are trained only with
    `embeddings`: pruning does not touch them, few texts show few of their rows, and they are half of a small model.
    Each batch holds samples of similar length, since padding is work for nothing. A killed run goes on from its last
    checkpoint and ends with the same bytes as one that was not killed, on the same machine and thread count.
    """

    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    losses: dict[str, Annotated[float, Field(gt=0)]] | None = None
    checkpoint_every: Annotated[int, Field(ge=1)] = 25
    keep_zeros: bool = True
    embeddings: bool = False

    def check(self, model: Model) -> None:
        """Raise RecipeError for a loss that the model's task does not have."""
        for name in self.losses or {}:
            if name not in terms.names_for(model):
                raise RecipeError(unknown("loss", name, terms.names_for(model), f"distill: task {model.task}"))

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The trained model; Change details hold first and last loss."""
        if not context.training:
            raise DataError("distill: no training data")
        torch.set_num_threads(context.threads)
        torch.manual_seed(context.seed)
        module = copy.deepcopy(model.module).eval()  # no dropout: the teacher has none either
        student = model.after(module, repr(self))
        weights = self._trained(module)
        masks = {name: mask for name, mask in _zero_masks(module).items() if self.keep_zeros and name in weights}
        samples = singles(student, context.training)
        optimizer = torch.optim.AdamW(
            weights.values(), lr=self.learning_rate, betas=_BETAS, weight_decay=self.weight_decay, foreach=False
        )
        checkpoint = context.scratch / "checkpoint.safetensors"
        start, history = _restore(checkpoint, weights, optimizer)
        with hooks_restored(module, context.teacher.module):
            for step in range(start, self.steps):
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * self._schedule(step)
                batch = join([samples[place] for place in self._places(samples, context.seed, step)])
                loss = self._loss(student, context.teacher, {name: torch.from_numpy(v) for name, v in batch.items()})
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise ModelError(f"distill: the loss is not finite at step {step}; lower learning_rate")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(weights.values(), 1.0, foreach=False)
                optimizer.step()
                with torch.no_grad():
                    for name, mask in masks.items():
                        weights[name].masked_fill_(mask, 0.0)
                history.append(value)
                context.progress(f"distil loss {value:.4f}", step + 1, self.steps)
                if (step + 1) % self.checkpoint_every == 0 and step + 1 < self.steps:
                    _save(checkpoint, step + 1, history, weights, optimizer)
        module.zero_grad(set_to_none=True)
        for part in module.parameters():
            part.requires_grad_(part.is_floating_point())
        head, tail = history[: max(1, len(history) // 10)], history[-max(1, len(history) // 10) :]
        first, last = sum(head) / len(head), sum(tail) / len(tail)
        why = f"{self.steps} steps, loss {first:.4f} to {last:.4f} (mean of the first and last tenth)"
        return student, Change("distill", True, why, {"loss_first": first, "loss_last": last, "steps": self.steps})

    def _schedule(self, step: int) -> float:
        ramp = max(1, int(self.warmup * self.steps))
        return (step + 1) / ramp if step < ramp else max(0.0, (self.steps - step) / max(1, self.steps - ramp))

    def _trained(self, module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
        tables = [part for part in module.modules() if isinstance(part, torch.nn.Embedding) and not self.embeddings]
        frozen = {id(value) for part in tables for value in part.parameters()}
        for value in module.parameters():
            value.requires_grad_(value.is_floating_point() and id(value) not in frozen)
        return {name: value for name, value in module.named_parameters() if value.requires_grad}

    def _places(self, samples: Sequence[Feed], seed: int, step: int) -> list[int]:
        """Which samples step number `step` sees. A function of seed and step alone, so that a resumed run agrees."""
        size = min(self.batch_size, len(samples))
        epoch, place = divmod(step, len(samples) // size)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(samples), generator=generator).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(samples) // size * size, _WINDOW * size):
            window = shuffled[start : min(start + _WINDOW * size, len(samples) // size * size)]
            window.sort(key=lambda index: length(samples[index]))
            batches += [window[begin : begin + size] for begin in range(0, len(window), size)]
        return batches[int(torch.randperm(len(batches), generator=generator)[place])]

    def _loss(self, student: Model, dense: Model, feed: Mapping[str, torch.Tensor]) -> torch.Tensor:
        wanted = dict(self.losses or dict.fromkeys(terms.names_for(student), 1.0))
        states = "hidden" in wanted
        with torch.no_grad():
            teacher, teacher_states = _forward(dense, feed, states)
        given, student_states = _forward(student, feed, states)
        mask = feed.get("attention_mask")
        name = student.output_names[0]
        total = torch.zeros(())
        for loss, weight in wanted.items():
            if loss == "embedding":
                assert mask is not None
                value = terms.embedding(given[name], teacher[name], mask, student.pooling)
            elif loss == "hidden":
                assert mask is not None
                # The first state is what the embedding tables give; all layers' states follow.
                pairs = list(zip(student_states, teacher_states, strict=True))[1:]
                value = torch.stack([terms.hidden(a, b, mask) for a, b in pairs]).mean()
            elif loss == "logits":
                a, b = given[name], teacher[name]
                if student.task == "causal-lm" and mask is not None:
                    a, b = a[mask.bool()], b[mask.bool()]
                value = terms.soft_labels(a, b, self.temperature)
            else:
                parts = [torch.nn.functional.mse_loss(given[n], teacher[n]) for n in student.output_names]
                value = torch.stack(parts).mean()
            total = total + weight * value
        return total


def _forward(
    model: Model, feed: Mapping[str, torch.Tensor], states: bool
) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
    if not states:
        return model.forward(feed), ()
    out = model.module(**{name: feed[name] for name in model.input_names}, return_dict=True, output_hidden_states=True)
    return {name: out[name] for name in model.output_names}, tuple(out.hidden_states)


def _zero_masks(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Where pruned Linear weights are exactly zero; chance zeros of a dense weight stay too, which is harmless."""
    found = {}
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Linear):
            mask = part.weight.detach() == 0
            if bool(mask.any()):
                found[f"{name}.weight"] = mask
    return found


def _save(
    path: Path,
    step: int,
    history: list[float],
    weights: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        tensors[f"weight:{name}"] = value.detach().contiguous()
        for key, state in optimizer.state.get(value, {}).items():
            tensors[f"{key}:{name}"] = state.detach().contiguous()
    temporary = path.with_suffix(".writing")
    save_file(tensors, temporary, metadata={"step": str(step), "history": json.dumps(history)})
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    temporary.replace(path)


def _restore(
    path: Path, weights: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[int, list[float]]:
    if not path.is_file():
        return 0, []
    with safe_open(str(path), framework="pt") as handle, torch.no_grad():
        said = handle.metadata()
        for full in handle.keys():  # noqa: SIM118 - no mapping
            key, _, name = full.partition(":")
            value = handle.get_tensor(full)
            if key == "weight":
                weights[name].copy_(value)
            else:
                optimizer.state[weights[name]][key] = value
    return int(said["step"]), list(json.loads(said["history"]))
