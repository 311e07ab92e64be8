"""The task itself: labels of a classifier, the next token of a language model. No teacher."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch.nn import functional as F

from edgeredux.errors import DataError
from edgeredux.model import Model
from edgeredux.training.answers import Answers
from edgeredux.training.losses.positions import POSITIONS
from edgeredux.training.losses.term import STRICT, Pair, Part, Tensors, Term

LABELS = "labels"  # feed entry beside the inputs: class numbers, int64 [batch]


def task_loss(model: Model, logits: torch.Tensor, feed: Tensors) -> torch.Tensor:
    """Mean cross entropy with the labels, or of each real token but the first given those before it.

    Raises DataError when a classifier's feed has no labels.
    """
    if model.task == "causal-lm":
        wanted = feed["input_ids"][:, 1:]
        if POSITIONS in feed:
            count = feed[POSITIONS][:, :-1].bool()
        elif "attention_mask" in feed:
            count = feed["attention_mask"][:, 1:].bool()
        else:
            count = torch.ones_like(wanted, dtype=torch.bool)
        return F.cross_entropy(logits[:, :-1][count], wanted[count])
    if LABELS not in feed:
        raise DataError(f"model {model.name}: the training data has no labels; name their column with data.label")
    return F.cross_entropy(logits, feed[LABELS])


@dataclass(frozen=True, config=STRICT)
class TaskLoss(Term):
    """Cross entropy with the data's labels (classifier) or next tokens (language model)."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "causal-lm")
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True

    def bind(self, pair: Pair) -> Part:
        """See Term."""
        name = pair.student.output_names[0]

        def value(seen: Answers, kept: Tensors, feed: Tensors) -> torch.Tensor:
            return task_loss(pair.student, seen.outputs[name], feed)

        return Part(lambda seen, feed: {}, value)
