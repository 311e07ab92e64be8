"""What a recipe's sparse training minimises: the task's own loss, or else the distance to the dense model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeredux.model import Model
from edgeredux.seams import Feed
from edgeredux.training.losses import defaults, parse
from edgeredux.training.losses.task import LABELS
from edgeredux.training.losses.term import Term


def terms(said: Mapping[str, Any] | None, model: Model, training: Sequence[Feed], where: str) -> dict[str, Term]:
    """The losses that the recipe says; without any: next tokens of a language model, labels of a classifier whose data
    has them, else what distillation from the dense model takes by default. Raises RecipeError.
    """
    if said is not None:
        return parse(said, model, where)
    labelled = model.task == "classification" and all(LABELS in feed for feed in training)
    return parse({"task": 1.0} if labelled or model.task == "causal-lm" else defaults(model), model, where)
