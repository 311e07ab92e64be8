"""Attention relations: how tokens look at each other, whatever the widths and head counts of the two models.

MiniLM (Wang et al. 2020) lets the student repeat the last layer's attention distribution (eq. 3) and value relation
softmax(V V^T / sqrt(d)) (eq. 4-5); MiniLMv2 (Wang et al. 2021, eq. 4-6) takes query, key and value relations after
splitting the concatenated heads anew into the same number of relation heads, so that head counts may differ.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from edgeredux.errors import ModelError, RecipeError
from edgeredux.training.answers import Answers, Needs
from edgeredux.training.attention import projections
from edgeredux.training.losses.term import STRICT, Pair, Part, Tensors, Term


def relation(a: torch.Tensor, b: torch.Tensor, heads: int, allowed: torch.Tensor) -> torch.Tensor:
    """log softmax(a b^T / sqrt(width / heads)), [batch, heads, tokens, tokens], of [batch, tokens, width].

    `allowed` [batch or 1, tokens, tokens] says which token each token may look at; the others get probability 0.
    """
    a, b = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (a, b))
    scores = a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])
    # The lowest number and not -inf: a row that may look nowhere (padding) stays finite, and is left out later.
    return scores.masked_fill(~allowed[:, None], torch.finfo(scores.dtype).min).log_softmax(-1)


def relation_loss(teacher: torch.Tensor, student: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 / (heads * |x|) * sum over heads and real tokens of KL(teacher || student), mean over samples (eq. 3, 5)."""
    divergence = (teacher.exp() * (teacher - student)).sum(-1).mean(1)  # [batch, tokens]
    real = mask.to(divergence.dtype)
    return ((divergence * real).sum(1) / real.sum(1).clamp_min(1)).mean()


@dataclass(frozen=True, config=STRICT)
class Relation(Term):
    """A relation of one layer. `relation_heads`: as many as divide both widths, at most the teacher's, unless given.

    `student_layer` and `teacher_layer` count from 0, from the end when negative. Queries and keys are taken as the
    layers give them, before rotary positions.
    """

    needs_transformers: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("embedding", "classification", "causal-lm")
    parts: ClassVar[tuple[str, str]]
    relation_heads: Annotated[int, Field(ge=1)] | None = None
    student_layer: int = -1
    teacher_layer: int = -1

    def bind(self, pair: Pair) -> Part:
        """See Term."""
        layers = {
            who: self._layer(len(projections(model)), said, f"{pair.where}: {who}_layer")
            for who, model, said in (
                ("student", pair.student, self.student_layer),
                ("teacher", pair.teacher, self.teacher_layer),
            )
        }
        needs = {who: Needs(attention=frozenset({layer})) for who, layer in layers.items()}
        student, teacher, feed = pair.look(needs["student"], needs["teacher"], 1)[0]
        mine, theirs = student.attention[layers["student"]], teacher.attention[layers["teacher"]]
        if mine["query"].shape[:2] != feed["input_ids"].shape:
            raise ModelError(f"{pair.where}: attention relations need one query, key and value a token")
        heads = self._heads(pair, mine[self.parts[0]].shape[-1], theirs[self.parts[0]].shape[-1])
        causal = pair.student.task == "causal-lm" and self.parts[0] != self.parts[1]

        def of(parts: Tensors, feed: Tensors) -> torch.Tensor:
            mask = feed["attention_mask"].bool()
            allowed = mask[:, None, :].expand(-1, mask.shape[1], -1)
            if causal:
                allowed = allowed.tril()
            return relation(parts[self.parts[0]], parts[self.parts[1]], heads, allowed)

        def digest(seen: Answers, feed: Tensors) -> dict[str, torch.Tensor]:
            taken = seen.attention[layers["teacher"]]
            return {name: taken[name] for name in self.parts}

        def value(seen: Answers, kept: Tensors, feed: Tensors) -> torch.Tensor:
            ours = of(seen.attention[layers["student"]], feed)
            return relation_loss(of(kept, feed), ours, feed["attention_mask"])

        return Part(digest, value, needs["student"], needs["teacher"])

    @staticmethod
    def _layer(count: int, said: int, where: str) -> int:
        if not -count <= said < count:
            raise RecipeError(f"{where}: {said} is none of the {count} layers (0..{count - 1}, or -1 for the last)")
        return said % count

    def _heads(self, pair: Pair, mine: int, theirs: int) -> int:
        common = math.gcd(mine, theirs)
        heads = int(getattr(pair.teacher.module.config, "num_attention_heads", 0) or common)
        allowed = [number for number in range(1, common + 1) if common % number == 0]
        chosen = self.relation_heads or max(number for number in allowed if number <= heads)
        if chosen not in allowed:
            raise RecipeError(
                f"{pair.where}: relation_heads: {chosen} does not divide the widths {mine} and {theirs}. "
                f"Allowed: {', '.join(map(str, allowed))}"
            )
        return chosen


@dataclass(frozen=True, config=STRICT)
class Attention(Relation):
    """softmax(Q K^T / sqrt(d)): the attention distribution (MiniLM, eq. 3); causal for language models."""

    parts: ClassVar[tuple[str, str]] = ("query", "key")


@dataclass(frozen=True, config=STRICT)
class QueryRelation(Relation):
    """softmax(Q Q^T / sqrt(d)) (MiniLMv2)."""

    parts: ClassVar[tuple[str, str]] = ("query", "query")


@dataclass(frozen=True, config=STRICT)
class KeyRelation(Relation):
    """softmax(K K^T / sqrt(d)) (MiniLMv2)."""

    parts: ClassVar[tuple[str, str]] = ("key", "key")


@dataclass(frozen=True, config=STRICT)
class ValueRelation(Relation):
    """softmax(V V^T / sqrt(d)) (MiniLM, eq. 4-5)."""

    parts: ClassVar[tuple[str, str]] = ("value", "value")
