"""What the student is asked to repeat of the teacher. Each returns a scalar; padded positions never count."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from edgeredux.model import Model


def pooled(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Sentence embeddings of unit length, [batch, width], as quality.pool computes them."""
    if pooling == "cls":
        return F.normalize(hidden[:, 0], dim=-1)
    weights = mask[..., None].to(hidden.dtype)
    return F.normalize((hidden * weights).sum(1) / weights.sum(1).clamp_min(1e-9), dim=-1)


def embedding(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """1 - mean cosine of the sentence embeddings."""
    return 1 - (pooled(student, mask, pooling) * pooled(teacher, mask, pooling)).sum(-1).mean()


def hidden(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error of a hidden state over real positions, relative to the teacher's mean square."""
    keep = mask.bool()
    return F.mse_loss(student[keep], teacher[keep]) / teacher[keep].square().mean().clamp_min(1e-12)


def soft_labels(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * H(p_teacher^T, p_student^T), mean over rows: soft-label cross entropy (Hinton et al. 2015, eq. 1-3)."""
    target = F.softmax(teacher / temperature, dim=-1)
    return -(target * F.log_softmax(student / temperature, dim=-1)).sum(-1).mean() * temperature**2


def names_for(model: Model) -> tuple[str, ...]:
    """The losses that a model's task can have."""
    both = ("hidden",) if model.is_transformers else ()
    return {
        "embedding": ("embedding", *both),
        "classification": ("logits", *both),
        "causal-lm": ("logits", *both),
        "generic": ("output", *both),
    }[model.task]
