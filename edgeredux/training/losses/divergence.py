"""Class probabilities: how far the student's are from the teacher's, at a temperature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch.nn import functional as F

from edgeredux.errors import ModelError
from edgeredux.training.answers import OUTPUTS, Answers
from edgeredux.training.losses.positions import rows
from edgeredux.training.losses.term import STRICT, Pair, Part, Tensors, Term

Compare = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def soft_labels(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * H(p_teacher^T, p_student^T), mean over rows: soft-label cross entropy (Hinton et al. 2015, eq. 1-3)."""
    target = F.softmax(teacher / temperature, dim=-1)
    return -(target * F.log_softmax(student / temperature, dim=-1)).sum(-1).mean() * temperature**2


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(P || Q), mean over rows, of log-probabilities [.., classes]. 0 * log 0 is 0."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean()


def forward_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(teacher || student): the student covers all that the teacher may say."""
    return kl(_log(teacher, temperature), _log(student, temperature)) * temperature**2


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(student || teacher): the student keeps to what the teacher says (MiniLLM, Gu et al. 2024, eq. 1)."""
    return kl(_log(student, temperature), _log(teacher, temperature)) * temperature**2


def jsd(student: torch.Tensor, teacher: torch.Tensor, temperature: float, beta: float) -> torch.Tensor:
    """T^2 * (beta KL(P || M) + (1 - beta) KL(Q || M)), M = beta P + (1 - beta) Q, P teacher, Q student (GKD, eq. 1)."""
    p, q = _log(teacher, temperature), _log(student, temperature)
    shares = torch.tensor([beta, 1 - beta], dtype=p.dtype, device=p.device).log()
    mixture = torch.logsumexp(torch.stack([p + shares[0], q + shares[1]]), 0)
    return (beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)) * temperature**2


def top_k(student: torch.Tensor, best: torch.Tensor, classes: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL over the teacher's best classes alone, both sides renormalised; `best` their logits, [rows, k]."""
    return forward_kl(student.gather(-1, classes), best, temperature)


def _log(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return F.log_softmax(logits / temperature, dim=-1)


@dataclass(frozen=True, config=STRICT)
class Divergence(Term):
    """A comparison of all classes. `temperature`: the step's, unless given."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "causal-lm")
    all_classes: ClassVar[bool] = True
    temperature: Annotated[float, Field(gt=0, le=100)] | None = None

    def compare(self, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        """The scalar for logits [rows, classes]."""
        raise NotImplementedError

    def bind(self, pair: Pair) -> Part:
        """See Term."""
        name = pair.student.output_names[0]
        same_classes(pair, name)
        temperature = self.temperature or pair.temperature

        def digest(seen: Answers, feed: Tensors) -> dict[str, torch.Tensor]:
            return {"logits": seen.outputs[name]}

        def value(seen: Answers, kept: Tensors, feed: Tensors) -> torch.Tensor:
            mine, theirs = rows(pair.student, seen.outputs[name], feed), rows(pair.student, kept["logits"], feed)
            return self.compare(mine, theirs, temperature)

        return Part(digest, value)


@dataclass(frozen=True, config=STRICT)
class SoftLabels(Divergence):
    """Cross entropy with the teacher's soft labels (soft_labels above)."""

    def compare(self, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        """See Divergence."""
        return soft_labels(student, teacher, temperature)


@dataclass(frozen=True, config=STRICT)
class ForwardKL(Divergence):
    """KL(teacher || student)."""

    def compare(self, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        """See Divergence."""
        return forward_kl(student, teacher, temperature)


@dataclass(frozen=True, config=STRICT)
class ReverseKL(Divergence):
    """KL(student || teacher)."""

    def compare(self, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        """See Divergence."""
        return reverse_kl(student, teacher, temperature)


@dataclass(frozen=True, config=STRICT)
class JensenShannon(Divergence):
    """The generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024), `beta` the teacher's share."""

    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def compare(self, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        """See Divergence."""
        return jsd(student, teacher, temperature, self.beta)


@dataclass(frozen=True, config=STRICT)
class TopK(Term):
    """KL(teacher || student) over the teacher's `k` likeliest classes, both renormalised: little to keep on disk."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "causal-lm")
    k: Annotated[int, Field(ge=2)] = 64
    temperature: Annotated[float, Field(gt=0, le=100)] | None = None

    def bind(self, pair: Pair) -> Part:
        """See Term."""
        name = pair.student.output_names[0]
        classes = same_classes(pair, name)
        temperature, k = self.temperature or pair.temperature, min(self.k, classes)

        def digest(seen: Answers, feed: Tensors) -> dict[str, torch.Tensor]:
            best = seen.outputs[name].topk(k, dim=-1)
            return {"logits": best.values, "classes": best.indices}

        def value(seen: Answers, kept: Tensors, feed: Tensors) -> torch.Tensor:
            mine, best = rows(pair.student, seen.outputs[name], feed), rows(pair.student, kept["logits"], feed)
            return top_k(mine, best, rows(pair.student, kept["classes"], feed), temperature)

        return Part(digest, value)


def same_classes(pair: Pair, name: str) -> int:
    """How many classes or tokens both models tell apart. Raises ModelError when it is not the same number."""
    student, teacher, _ = pair.look(OUTPUTS, OUTPUTS, 1)[0]
    mine, theirs = student.outputs[name].shape[-1], teacher.outputs[name].shape[-1]
    if mine != theirs:
        raise ModelError(f"{pair.where}: the student has {mine} classes or tokens, the teacher {theirs}")
    return mine
