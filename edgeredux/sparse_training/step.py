"""What all methods of sparse training share: options, the reduce step, and the way into the training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.batching import singles
from edgeredux.model import Model
from edgeredux.seams import Feed, ReduceContext
from edgeredux.sparse_training.objective import terms
from edgeredux.sparse_training.weights import Weight, sparse_weights
from edgeredux.training.batches import Batches
from edgeredux.training.callback import Callback, Run
from edgeredux.training.loop import tenths
from edgeredux.training.objective import Objective
from edgeredux.training.options import TrainingOptions, start
from edgeredux.training.schedule import Schedule
from edgeredux.training.trainable import hooks_restored

STRICT = ConfigDict(extra="forbid")


@plain(frozen=True)
class Plan:
    """How a run begins and who changes it: masks by parameter name (True = zero), callbacks of the loop."""

    zero: Mapping[str, torch.Tensor] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()


@plain(frozen=True)
class Fitted:
    """What a run did: the loss of each update, and for each sparse weight its exact zeros and its size."""

    losses: tuple[float, ...]
    zeros: Mapping[str, tuple[int, int]]

    def change(self, name: str) -> Change:
        """One line of history."""
        gone, total = (sum(counts) for counts in zip(*self.zeros.values(), strict=True))
        first, last = tenths(self.losses)
        why = (
            f"{gone:,} of {total:,} weights in {len(self.zeros)} layers are zero; {len(self.losses)} steps, "
            f"loss {first:.4f} to {last:.4f} (mean of the first and last tenth)"
        )
        layers = {weight.removesuffix(".weight"): counts[0] for weight, counts in self.zeros.items()}
        details = {"weights": total, "zeros": gone, "zeros_by_layer": layers, "steps": len(self.losses)}
        return Change(name, True, why, {**details, "loss_first": first, "loss_last": last})


class Begin(Callback):
    """Puts the first masks in force, in a fresh run; a resumed one has its own."""

    name = "begin"

    def __init__(self, zero: Mapping[str, torch.Tensor]) -> None:
        self._zero = zero

    def on_start(self, run: Run) -> None:
        """See Callback."""
        for name, mask in self._zero.items():
            run.change_mask(name, mask)


@dataclass(frozen=True, config=STRICT)
class SparseTraining(TrainingOptions):
    """Train a model with zeros in it, in training mode, from the weights it has (fresh ones: from scratch).

    `losses` as in the step `distill`; without any the loss is the task's own, next tokens or class labels, and where
    there is neither the distance to the dense model. Layers whose name matches a pattern of `exclude` (shell style)
    stay dense; a transformers model's embeddings and head always do. A killed run goes on from its last checkpoint and
    ends with the same bytes. Other options: edgeredux/training/options.py.
    """

    steps: Annotated[int, Field(ge=1, le=100_000_000)] = 1000
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 32
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    schedule: Schedule = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    embeddings: bool = True
    losses: dict[str, Annotated[float, Field(gt=0)] | dict[str, Any]] | None = None
    exclude: tuple[str, ...] = ()

    name: ClassVar[str]

    def plan(self, weights: Sequence[Weight], seed: int) -> Plan:
        """Masks and callbacks for these weights. Raises RecipeError or ModelError when they cannot be had."""
        raise NotImplementedError

    def chosen(self, module: torch.nn.Module, blocks_only: bool) -> list[Weight]:
        """The weights that are trained sparse."""
        return sparse_weights(module, blocks_only, self.exclude, self.name)

    def check(self, model: Model) -> None:
        """Raise RecipeError or ModelError when the model has no such layers or cannot have so many zeros."""
        self.check_training(model, self.name)
        terms(self.losses, model, (), self.name)
        self.plan(self.chosen(model.module, model.is_transformers), 0)

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The trained model; Change details hold weights, zeros (in all and by layer), first and last loss."""
        self.check(model)
        start(context, self.name)
        module = copy.deepcopy(model.module)
        student = model.after(module, repr(self))
        module.to(self.device)
        teacher = self.placed(context.teacher)
        with hooks_restored(module, teacher.module):
            batches = Batches(singles(student, context.training), self.batch_size, context.seed)
            said = terms(self.losses, student, context.training, self.name)
            loss = Objective(said, student, teacher, batches, seed=context.seed, where=self.name)
            fitted = self.run(student, loss, batches, context, beside=loss.parameters)
        return student, fitted.change(self.name)

    def run(
        self,
        student: Model,
        loss: Callable[[dict[str, torch.Tensor]], torch.Tensor],
        batches: Callable[[int], Feed],
        context: ReduceContext,
        *,
        beside: Mapping[str, torch.nn.Parameter] | None = None,
    ) -> Fitted:
        """Train the student's module in place and leave it as steps hand it on."""
        weights = self.chosen(student.module, student.is_transformers)
        plan = self.plan(weights, context.seed)
        student.module.train()  # batch normalisation and dropout at work
        losses = self.fit(
            student,
            loss,
            batches,
            context,
            self.name,
            beside=beside,
            callbacks=[Begin(plan.zero), *plan.callbacks],
            exempt=[weight.name for weight in weights],
        )
        counts = {weight.name: (int((weight.value == 0).sum()), weight.value.numel()) for weight in weights}
        return Fitted(tuple(losses), counts)
