"""`edgeredux prune`: a Hugging Face checkpoint, however large, pruned block by block into a new folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux import loading, registry
from edgeredux.data import read_texts
from edgeredux.errors import DataError, RecipeError
from edgeredux.seams import Progress, silent
from edgeredux.sources import resolve
from edgeredux.wrapping import as_feeds

if TYPE_CHECKING:
    from edgeredux.model import Model
    from edgeredux.pruning.streamed import Streamed
    from edgeredux.seams import Feed


def prune_folder(
    model: str,
    out: str | Path,
    *,
    method: str | Mapping[str, Any] = "sparsegpt",
    pattern: str = "unstructured",
    zeros: float | None = None,
    data: str | Sequence[Any] = "python-docs",
    texts: int = 128,
    tokens: int = 128,
    batch: int = 8,
    exclude: Sequence[str] = (),
    task: str = "auto",
    seed: int = 0,
    threads: int = 1,
    shard_mb: int = 2000,
    remote_code: bool = False,
    progress: Progress = silent,
) -> Streamed:
    """The folder `out` with the pruned checkpoint, and what was done to each block (pruning/streaming.py).

    `model`: a Hugging Face folder or id with safetensors. `method`, `pattern`, `zeros`, `exclude` as in the recipe step
    `prune`; methods with gradients and uneven allocations need the whole model and are refused. `data`: what a recipe's
    data.source takes, of which the calibration part's first `texts` texts are used, cut to `tokens` tokens, `batch` at
    a time; or texts or batches themselves, all of them. The same call goes on after a kill. Memory: two blocks in
    float32, one Gram matrix and its factor, and all batches' inputs of one layer.

    Raises RecipeError, ModelError, DataError, BundleError or StorageError with one line that says what is allowed.
    """
    options = {
        "method": method if isinstance(method, str) else dict(method),
        "pattern": pattern,
        "zeros": zeros,
        "exclude": tuple(exclude),
    }
    step = registry.create("reduce step", "prune", options, "edgeredux prune")
    for name, value in {
        "texts": texts,
        "tokens": tokens,
        "batch": batch,
        "threads": threads,
        "shard_mb": shard_mb,
    }.items():
        if value < 1:
            raise RecipeError(f"edgeredux prune: {name} is {value}; at least 1 is needed")
    source = resolve(model)
    empty = loading.skeleton(source, task=task, max_length=tokens, remote_code=remote_code)
    assert source.path is not None
    from edgeredux.pruning.streaming import prune_checkpoint

    return prune_checkpoint(
        empty,
        source.path,
        Path(out),
        step,
        _feeds(empty, data, texts, batch, step.looks_at_inputs),
        seed=seed,
        threads=threads,
        shard_mb=shard_mb,
        progress=progress,
    )


def _feeds(model: Model, data: str | Sequence[Any], texts: int, batch: int, needed: bool) -> list[Feed]:
    if not needed:
        return []
    if not isinstance(data, str):
        return as_feeds(model, list(data))
    if model.tokenizer is None:
        raise DataError(f"model {model.name}: it has no tokenizer, so text cannot be its input; give batches")
    chosen = [example.text for example in read_texts(data).take("calibration", texts)]
    return [model.encode(chosen[place : place + batch]) for place in range(0, len(chosen), batch)]
