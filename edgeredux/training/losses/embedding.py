"""Sentence embeddings: 1 - mean cosine between the student's and the teacher's."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch.nn import functional as F

from edgeredux.training.answers import Answers
from edgeredux.training.losses.projection import How, projection
from edgeredux.training.losses.term import STRICT, Pair, Part, Tensors, Term


def pooled(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Sentence embeddings of unit length, [batch, width], as quality.pool computes them."""
    if pooling == "cls":
        return F.normalize(hidden[:, 0], dim=-1)
    weights = mask[..., None].to(hidden.dtype)
    return F.normalize((hidden * weights).sum(1) / weights.sum(1).clamp_min(1e-9), dim=-1)


@dataclass(frozen=True, config=STRICT)
class Embedding(Term):
    """1 - mean cosine. Where widths differ the student's states go through a `projection` first (see projection.py)."""

    tasks: ClassVar[tuple[str, ...]] = ("embedding",)
    projection: How = "learnt"

    def bind(self, pair: Pair) -> Part:
        """See Term."""
        name = pair.student.output_names[0]
        move, parameters = projection(
            self.projection, pair, lambda seen: [seen.outputs[name]], lambda seen: [seen.outputs[name]]
        )

        def digest(seen: Answers, feed: Tensors) -> dict[str, torch.Tensor]:
            return {"pooled": pooled(seen.outputs[name], feed["attention_mask"], pair.teacher.pooling)}

        def value(seen: Answers, kept: Tensors, feed: Tensors) -> torch.Tensor:
            mine = pooled(move(0, seen.outputs[name]), feed["attention_mask"], pair.student.pooling)
            return 1 - (mine * kept["pooled"]).sum(-1).mean()

        return Part(digest, value, parameters=parameters)
