"""One line that finds out: how much a model may lose, and which of its layers mind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeredux.model import Model
from edgeredux.oneline import applied
from edgeredux.seams import Progress, silent
from edgeredux.sensitivity_table import SensitivityTable
from edgeredux.wrapping import AnyData

if TYPE_CHECKING:
    import torch


def prune_until(
    model: Model | torch.nn.Module | str,
    *,
    limit: float | Mapping[str, float],
    data: AnyData,
    method: str | Mapping[str, Any] | None = None,
    pattern: str = "unstructured",
    allocation: str = "uniform",
    exclude: Sequence[str] = (),
    first: float | None = None,
    by: float = 0.05,
    most: float = 0.95,
    halvings: int = 0,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Any:
    """The model pruned as far as `limit` allows: a module where a module came in, else a Model, whose history has
    every setting that was tried.

    `limit` is the least quality (mean cosine to the dense model's outputs; accuracy where a classifier's batches hold
    "labels", else agreement with the dense model's class), or {metric: value}: quality, quality_ratio, agreement_top1,
    for language models perplexity or perplexity_ratio. Every fourth sample of `data` judges, the others calibrate.
    `method`, `pattern`, `allocation`, `exclude` as in `edgeredux.prune`; the rest as in the recipe step `prune_until`
    (pruning/until.py). Raises RecipeError, ModelError or DataError with one line; RecipeError when the first setting
    misses the limit.
    """
    said = {
        "limit": dict(limit) if isinstance(limit, Mapping) else limit,
        "method": dict(method) if isinstance(method, Mapping) else method,
        "pattern": pattern,
        "allocation": allocation,
        "exclude": tuple(exclude),
        "first": first,
        "by": by,
        "most": most,
        "halvings": halvings,
        "options": dict(options or {}),
    }
    return applied("prune_until", said, model, data, seed, progress)[0]


def sensitivity(
    model: Model | torch.nn.Module | str,
    *,
    data: AnyData,
    method: str | Mapping[str, Any] = "wanda",
    pattern: str = "unstructured",
    grid: Sequence[float] = (0.3, 0.5, 0.7, 0.9),
    exclude: Sequence[str] = (),
    samples: int = 64,
    seed: int = 0,
    progress: Progress = silent,
) -> SensitivityTable:
    """How much each layer minds: quality and loss where it alone is pruned to each share of `grid`.

    The table has `by_sensitivity()`, `to_json()` and `to_csv()`. Options as in the recipe step `sensitivity`
    (pruning/sensitivity_step.py). The model stays as it was. Raises RecipeError, ModelError or DataError.
    """
    said = {
        "method": dict(method) if isinstance(method, Mapping) else method,
        "pattern": pattern,
        "grid": tuple(grid),
        "exclude": tuple(exclude),
        "samples": samples,
    }
    _, change = applied("sensitivity", said, model, data, seed, progress)
    return SensitivityTable.from_json(change.details["sensitivity"])
