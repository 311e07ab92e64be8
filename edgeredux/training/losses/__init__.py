"""Losses, one kind a file, and their names in recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from edgeredux.errors import RecipeError, one_line, unknown
from edgeredux.model import Model
from edgeredux.training.losses import divergence, relations
from edgeredux.training.losses.embedding import Embedding
from edgeredux.training.losses.hidden import Hidden
from edgeredux.training.losses.output import Output
from edgeredux.training.losses.task import TaskLoss
from edgeredux.training.losses.term import Term

LOSSES: dict[str, type[Term]] = {
    "embedding": Embedding,
    "hidden": Hidden,
    "logits": divergence.SoftLabels,
    "forward_kl": divergence.ForwardKL,
    "reverse_kl": divergence.ReverseKL,
    "jsd": divergence.JensenShannon,
    "top_k": divergence.TopK,
    "attention": relations.Attention,
    "query_relation": relations.QueryRelation,
    "key_relation": relations.KeyRelation,
    "value_relation": relations.ValueRelation,
    "output": Output,
    "task": TaskLoss,
}
# What a task is distilled by where the recipe names no losses, weight 1 each.
_DEFAULTS = {
    "embedding": ("embedding", "hidden"),
    "classification": ("logits", "hidden"),
    "causal-lm": ("logits", "hidden"),
    "generic": ("output", "hidden"),
}


def allowed(model: Model) -> list[str]:
    """The losses that a model's task can have."""
    return [
        name
        for name, term in LOSSES.items()
        if model.task in term.tasks and (model.is_transformers or not term.needs_transformers)
    ]


def defaults(model: Model) -> dict[str, float]:
    """The losses of a model whose recipe names none."""
    return {name: 1.0 for name in _DEFAULTS[model.task] if name in allowed(model)}


def parse(said: Mapping[str, Any], model: Model, where: str) -> dict[str, Term]:
    """Losses as a recipe writes them, {name: weight} or {name: {weight: 1.0, option: ...}}, checked for the task.

    Raises RecipeError that lists what is allowed.
    """
    made: dict[str, Term] = {}
    for name, options in said.items():
        if name not in allowed(model):
            raise RecipeError(unknown("loss", name, allowed(model), f"{where}: task {model.task}"))
        given = options if isinstance(options, Mapping) else {"weight": options}
        fields = list(LOSSES[name].__dataclass_fields__)
        for key in given:
            if key not in fields:
                raise RecipeError(unknown("option", str(key), fields, f"{where}: loss {name}"))
        try:
            made[name] = LOSSES[name](**given)
        except ValidationError as problem:
            first = problem.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise RecipeError(one_line(f"{where}: loss {name}: {place}: {first['msg']}")) from problem
    if not made:
        raise RecipeError(f"{where}: losses is empty. Allowed: {', '.join(allowed(model))}")
    return made
