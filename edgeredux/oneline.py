"""The one-line functions: `edgeredux.prune(model, method="wanda", pattern="2:4", data=batches)`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux import registry
from edgeredux.artifact import Change
from edgeredux.errors import RecipeError
from edgeredux.model import Model
from edgeredux.processes import ALONE, Processes
from edgeredux.seams import Progress, ReduceContext, ReduceStep, silent
from edgeredux.units import step_of
from edgeredux.wrapping import AnyData, as_feeds, as_model

if TYPE_CHECKING:
    import torch


def prune(
    model: Model | torch.nn.Module | str,
    *,
    method: str | Mapping[str, Any] | None = None,
    pattern: str = "unstructured",
    zeros: float | None = None,
    data: AnyData = None,
    allocation: str = "uniform",
    exclude: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> Any:
    """The pruned model, as a module where a module came in, else as a Model; what came in stays as it was.

    Zeros in place: `pattern` unstructured, n:m, a block or tile, `method` magnitude (the default), random, taylor,
    fisher, wanda, sparsegpt or alps, as in the recipe step `prune` (pruning/unstructured.py). Shapes that shrink:
    `pattern` neurons, heads, channels, width, depth or vocabulary, as in the steps of units.STRUCTURED, whose own
    method is the default. `zeros` is the share that goes, 0.5 unless the pattern says. `data` calibrates methods that
    look at inputs or gradients: texts for a Model with a tokenizer, else batches as dicts, tuples or tensors. Under
    `accelerate launch` say processes=Accelerated() (edgeredux/processes.py): the batches are shared out, and every
    process gets the same model.

    Raises RecipeError, ModelError or DataError with one line that says what is allowed.
    """
    step, options = step_of(pattern, method, zeros, allocation, exclude, "edgeredux.prune")
    return applied(step, options, model, data, seed, progress, processes=processes)[0]


def distill(
    student: Model | torch.nn.Module | str,
    teacher: Model | torch.nn.Module | str,
    *,
    data: AnyData,
    steps: int = 100,
    losses: Mapping[str, Any] | None = None,
    learning_rate: float = 2e-4,
    batch_size: int = 16,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Any:
    """The student trained to repeat the teacher on `data`: a module where a module came in, else a Model.

    Neither of the two is changed. `losses` is {name: weight} or {name: {option: value}}, all the task has by default;
    `options` are the others of the recipe step `distill` (distillation/step.py), such as {"temperature": 4.0,
    "precision": "bfloat16", "cache": "folder"}. `data` is unlabelled: texts for a Model with a tokenizer, else batches
    as dicts, tuples or tensors; entries "labels" are kept for the loss `task`.

    Raises RecipeError, ModelError or DataError with one line that says what is allowed.
    """
    said = {
        "steps": steps,
        "losses": None if losses is None else dict(losses),
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        **(options or {}),
    }
    return applied("distill", said, student, data, seed, progress, teacher)[0]


def applied(
    name: str,
    options: Mapping[str, Any],
    model: Model | torch.nn.Module | str,
    data: AnyData,
    seed: int,
    progress: Progress,
    teacher: Model | torch.nn.Module | str | None = None,
    processes: Processes = ALONE,
) -> tuple[Any, Change]:
    """The model after one reduce step, and what changed; the dense model it may look at is `teacher`, or the model."""
    import torch

    step: ReduceStep = registry.create("reduce step", name, options, f"edgeredux.{name}")
    items = list(data) if data is not None else []
    with modes_restored(model, teacher):
        wrapped = as_model(model, items)
        if items and not wrapped.input_names:
            raise RecipeError(f"edgeredux.{name}: the model's inputs are not known, so data cannot be given to it")
        feeds = as_feeds(wrapped, items)
        step.check(wrapped)
        with tempfile.TemporaryDirectory(prefix="edgeredux-") as scratch:
            context = ReduceContext(
                teacher=wrapped if teacher is None else as_model(teacher, items),
                calibration=feeds,
                training=feeds,
                seed=seed,
                threads=torch.get_num_threads(),
                scratch=Path(scratch),
                progress=progress,
                processes=processes,
            )
            reduced, change = step.apply(wrapped, context)
    return (reduced.module if isinstance(model, torch.nn.Module) else reduced), change


@contextmanager
def modes_restored(*models: Any) -> Iterator[None]:
    """Modules given by the caller are observed in evaluation mode and are afterwards in the mode they came in."""
    import torch

    parts = [part for model in models if isinstance(model, torch.nn.Module) for part in model.modules()]
    before = [part.training for part in parts]
    try:
        yield
    finally:
        for part, mode in zip(parts, before, strict=True):
            part.training = mode
