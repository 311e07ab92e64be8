"""Which rows of a model's outputs a loss looks at: padding never counts."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgeredux.model import Model

POSITIONS = "positions"  # optional feed entry, boolean [batch, tokens]: only these count (what a model generated)


def real(feed: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Boolean [batch, tokens], True where a token is real (and wanted); None where no mask says so."""
    if POSITIONS in feed:
        return feed[POSITIONS].bool()
    return feed["attention_mask"].bool() if "attention_mask" in feed else None


def rows(model: Model, values: torch.Tensor, feed: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits as [rows, classes]: one row a sample of a classifier, one a real token of a language model."""
    mask = real(feed) if model.task == "causal-lm" else None
    return values.flatten(0, -2) if mask is None else values[mask]
