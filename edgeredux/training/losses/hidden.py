"""Hidden states: relative mean squared error, layer by layer, with a map where the student has fewer layers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch.nn import functional as F

from edgeredux.errors import RecipeError
from edgeredux.training.answers import Answers, Needs
from edgeredux.training.losses.positions import real
from edgeredux.training.losses.projection import How, projection
from edgeredux.training.losses.term import STRICT, Pair, Part, Tensors, Term


def relative_error(student: torch.Tensor, teacher: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Mean squared error of a hidden state over real positions, relative to the teacher's mean square."""
    if keep is not None:
        student, teacher = student[keep], teacher[keep]
    return F.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)


def layer_map(said: Literal["uniform"] | dict[int, int], student: int, teacher: int, where: str) -> dict[int, int]:
    """Student layer -> teacher layer, both from 0; "uniform" spreads them, last onto last (PKD's and TinyBERT's map).

    Of M student and N teacher layers, layer i gets floor((i + 1) * N / M) - 1.
    """
    if said == "uniform":
        if student > teacher:
            raise RecipeError(f"{where}: the student has {student} layers, the teacher {teacher}; say layers: {{...}}")
        return {layer: (layer + 1) * teacher // student - 1 for layer in range(student)}
    assert not isinstance(said, str)
    for mine, theirs in said.items():
        if not 0 <= mine < student or not 0 <= theirs < teacher:
            raise RecipeError(
                f"{where}: layers {{{mine}: {theirs}}}: student layers are 0..{student - 1}, "
                f"teacher layers 0..{teacher - 1}"
            )
    return dict(sorted(said.items()))


@dataclass(frozen=True, config=STRICT)
class Hidden(Term):
    """Mean over layers of ||S - T||^2 / ||T||^2 at real tokens, S projected where widths differ (projection.py).

    `layers` maps student layers to teacher layers ({0: 1, 1: 3}, both from 0) or is "uniform".
    """

    needs_transformers: ClassVar[bool] = True
    layers: Literal["uniform"] | Annotated[dict[int, int], Field(min_length=1)] = "uniform"
    projection: How = "learnt"

    def bind(self, pair: Pair) -> Part:
        """See Term."""
        needs = Needs(hidden=True)
        student, teacher, _ = pair.look(needs, needs, 1)[0]
        # The first state is what the embedding tables give; all layers' states follow.
        chosen = layer_map(self.layers, len(student.hidden) - 1, len(teacher.hidden) - 1, f"{pair.where}: hidden")
        move, parameters = projection(
            self.projection,
            pair,
            lambda seen: [seen.hidden[mine + 1] for mine in chosen],
            lambda seen: [seen.hidden[theirs + 1] for theirs in chosen.values()],
            needs,
        )

        def digest(seen: Answers, feed: Tensors) -> dict[str, torch.Tensor]:
            return {str(theirs): seen.hidden[theirs + 1] for theirs in chosen.values()}

        def value(seen: Answers, kept: Tensors, feed: Tensors) -> torch.Tensor:
            keep = real(feed)
            errors = [
                relative_error(move(place, seen.hidden[mine + 1]), kept[str(theirs)], keep)
                for place, (mine, theirs) in enumerate(chosen.items())
            ]
            return torch.stack(errors).mean()

        return Part(digest, value, needs, needs, parameters)
