"""Fine-tuning on the task's own data, what pruning left at zero held at zero."""

from __future__ import annotations

import copy

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.batching import singles
from edgeredux.errors import DataError, RecipeError
from edgeredux.model import Model
from edgeredux.seams import ReduceContext
from edgeredux.training.batches import Batches
from edgeredux.training.loop import tenths
from edgeredux.training.losses.task import LABELS, TaskLoss, task_loss
from edgeredux.training.options import TrainingOptions, start
from edgeredux.training.trainable import hooks_restored


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Finetune(TrainingOptions):
    """Train by the labels of a classifier's data (data.label) or the next tokens of a language model's texts.

    `dropout` runs the model in training mode, as it was trained. Other options: edgeredux/training/options.py.
    Resumable to the byte.
    """

    dropout: bool = False

    def check(self, model: Model) -> None:
        """Raise RecipeError for a task without labels, EnvironmentProblem for an absent GPU."""
        if model.task not in TaskLoss.tasks:
            raise RecipeError(
                f"finetune: task {model.task} has no labels to train by: use the step distill. "
                f"Allowed: {', '.join(TaskLoss.tasks)}"
            )
        self.check_training(model, "finetune")

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The trained model; Change details hold first and last loss. Raises DataError when there are no labels."""
        self.check(model)
        start(context, "finetune")
        if model.task == "classification" and LABELS not in context.training[0]:
            raise DataError("finetune: the training data has no labels; name their column with data.label")
        module = copy.deepcopy(model.module).train(self.dropout)
        student = model.after(module, repr(self))
        module.to(self.device)
        name = student.output_names[0]
        batches = Batches(singles(student, context.training), self.batch_size, context.seed)
        with hooks_restored(module):
            history = self.fit(
                student,
                lambda feed: task_loss(student, student.forward(feed)[name].float(), feed),
                batches,
                context,
                "fine-tune",
            )
        first, last = tenths(history)
        why = f"{self.steps} steps, loss {first:.4f} to {last:.4f} (mean of the first and last tenth)"
        return student, Change("finetune", True, why, {"loss_first": first, "loss_last": last, "steps": self.steps})
