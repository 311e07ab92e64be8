"""What every step that trains lets a recipe choose, and how it goes about it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.errors import DataError, EnvironmentProblem, RecipeError
from edgeredux.model import Model
from edgeredux.seams import Feed, ReduceContext
from edgeredux.training.callback import Callback
from edgeredux.training.loop import train
from edgeredux.training.masks import zeros_of
from edgeredux.training.schedule import Schedule
from edgeredux.training.settings import Optimizer, Precision, Settings
from edgeredux.training.trainable import activations_recomputed, finished, matrices, trainable

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TrainingOptions:
    """`steps` updates of `accumulate` batches of `batch_size` samples each, all in settings.py but these:

    Exact zeros that pruning left in Linears and convolutions stay exact zeros (`keep_zeros`). Embedding tables are
    trained only with `embeddings`: pruning does not touch them, few texts show few of their rows, and they are half of
    a small model. `recompute` trades time for memory (gradient checkpointing, transformers models). Each batch holds
    samples of similar length, since padding is work for nothing.
    """

    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    optimizer: Optimizer = "adamw"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    schedule: Schedule = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    clip: Annotated[float, Field(ge=0)] = 1.0
    precision: Precision = "float32"
    recompute: bool = False
    device: Device = "cpu"
    checkpoint_every: Annotated[int, Field(ge=1)] = 25
    keep_zeros: bool = True
    embeddings: bool = False

    def check_training(self, model: Model, where: str) -> None:
        """Raise RecipeError or EnvironmentProblem for what this model or machine cannot do."""
        if self.recompute and not hasattr(model.module, "gradient_checkpointing_enable"):
            raise RecipeError(f"{where}: recompute needs a transformers model; {model.name} is none")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise EnvironmentProblem(f"{where}: device: cuda, but torch sees no GPU here; set device: cpu")

    def placed(self, model: Model) -> Model:
        """The model on the device that is trained on: itself on the CPU, else a copy there."""
        if self.device == "cpu":
            return model
        return replace(model, module=copy.deepcopy(model.module).to(self.device))

    def settings(self) -> Settings:
        """The loop's settings."""
        return Settings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup=self.warmup,
            accumulate=self.accumulate,
            precision=self.precision,
            clip=self.clip,
            checkpoint_every=self.checkpoint_every,
        )

    def fit(
        self,
        student: Model,
        loss: Callable[[dict[str, torch.Tensor]], torch.Tensor],
        batches: Callable[[int], Feed],
        context: ReduceContext,
        label: str,
        *,
        beside: Mapping[str, torch.nn.Parameter] | None = None,
        callbacks: Sequence[Callback] = (),
        exempt: Sequence[str] = (),
    ) -> list[float]:
        """Train the student's module in place and leave it as steps hand it on, on the CPU; the loss of each update.

        `beside` are weights of the loss itself. Weights in `exempt` keep no zeros: callbacks mask those.
        """
        module = student.module
        weights = trainable(module, embeddings=self.embeddings)
        kept = [name for name in matrices(module) if name not in exempt] if self.keep_zeros else []
        with activations_recomputed(module, self.recompute):
            history = train(
                self.settings(),
                {**weights, **(beside or {})},
                batches,
                loss,
                zero=zeros_of(weights, kept),
                buffers=dict(module.named_buffers()),
                callbacks=callbacks,
                checkpoint=context.scratch / "checkpoint.safetensors",
                identity=repr(self),
                progress=context.progress,
                label=label,
            )
        finished(module.to("cpu"))
        return history


def start(context: ReduceContext, where: str) -> None:
    """Threads and seed as the recipe says. Raises DataError when there is nothing to train on."""
    if not context.training:
        raise DataError(f"{where}: no training data")
    torch.set_num_threads(context.threads)
    torch.manual_seed(context.seed)
