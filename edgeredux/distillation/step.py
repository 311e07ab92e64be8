"""Distillation from the dense model, resumable to the byte."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.batching import singles
from edgeredux.distillation import losses as terms
from edgeredux.errors import DataError, RecipeError, unknown
from edgeredux.model import Model
from edgeredux.seams import ReduceContext
from edgeredux.training.batches import Batches
from edgeredux.training.loop import tenths, train
from edgeredux.training.masks import zeros_of
from edgeredux.training.settings import Settings
from edgeredux.training.trainable import finished, hooks_restored, trainable


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
        weights = trainable(module, embeddings=self.embeddings)
        linears = [f"{name}.weight" for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)]
        masks = zeros_of(weights, linears) if self.keep_zeros else {}
        batches = Batches(singles(student, context.training), self.batch_size, context.seed)
        with hooks_restored(module, context.teacher.module):
            history = train(
                Settings(
                    steps=self.steps,
                    learning_rate=self.learning_rate,
                    weight_decay=self.weight_decay,
                    warmup=self.warmup,
                    checkpoint_every=self.checkpoint_every,
                ),
                weights,
                batches,
                lambda feed: self._loss(student, context.teacher, feed),
                zero=masks,
                buffers=dict(module.named_buffers()),
                checkpoint=context.scratch / "checkpoint.safetensors",
                identity=repr(self),
                progress=context.progress,
                label="distil",
            )
        finished(module)
        first, last = tenths(history)
        why = f"{self.steps} steps, loss {first:.4f} to {last:.4f} (mean of the first and last tenth)"
        return student, Change("distill", True, why, {"loss_first": first, "loss_last": last, "steps": self.steps})

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
