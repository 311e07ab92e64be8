"""The interface of an nn.Module that nobody described: names, axes and more inputs like the example ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeredux.errors import ModelError, one_line
from edgeredux.model import Model
from edgeredux.seams import Feed
from edgeredux.sources import Source


def describe(module: Any, examples: Any, source: Source, max_length: int) -> Model:
    """The Model of a module with example inputs: first dimension is the batch, all others are fixed."""
    import torch

    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    names = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in (0, 1)]
    if isinstance(examples, Mapping):
        unknown = sorted(set(examples) - set(names))
        if unknown:
            raise ModelError(f"model {source.text}: forward has no argument {unknown[0]!r}. It has: {', '.join(names)}")
        names = [name for name in names if name in examples]
        values = [examples[name] for name in names]
    else:
        values = list(examples)
        if len(values) > len(names):
            raise ModelError(f"model {source.text}: {len(values)} example inputs for {len(names)} arguments of forward")
        names = names[: len(values)]
    if not values or not all(isinstance(value, torch.Tensor) and value.dim() > 0 for value in values):
        raise ModelError(f"model {source.text}: example inputs must be tensors with a batch dimension")
    try:
        with torch.inference_mode():
            out = module(*values)
    except Exception as problem:
        raise ModelError(one_line(f"model {source.text}: forward fails on the example inputs: {problem}")) from problem
    if isinstance(out, Mapping):
        outputs = {str(name): value for name, value in out.items()}
    else:
        outs = out if isinstance(out, (tuple, list)) else (out,)
        outputs = {f"output_{index}" if len(outs) > 1 else "output": value for index, value in enumerate(outs)}
    if not outputs or not all(isinstance(value, torch.Tensor) for value in outputs.values()):
        raise ModelError(f"model {source.text}: forward must return a tensor, a tuple or a dict of tensors")
    batch = values[0].shape[0]
    axes: dict[str, tuple[str | None, ...]] = {}
    for name, value in [*zip(names, values, strict=True), *outputs.items()]:
        moves = value.dim() > 0 and value.shape[0] == batch
        axes[name] = tuple("batch" if index == 0 and moves else None for index in range(value.dim()))
    return Model(
        module=module,
        name=source.text.rpartition(":")[2],
        task="generic",
        input_names=tuple(names),
        output_names=tuple(outputs),
        axes=axes,
        source=source.text,
        sha256=source.sha256,
        max_length=max_length,
        examples={name: value.numpy() for name, value in zip(names, values, strict=True)},
    )


def more_like(examples: Mapping[str, np.ndarray[Any, Any]], count: int, seed: int) -> list[Feed]:
    """`count` feeds shaped as the example: floats with its mean and spread, whole numbers within its range."""
    generator = np.random.default_rng(seed)
    feeds: list[Feed] = []
    for _ in range(count):
        feed: Feed = {}
        for name, value in examples.items():
            if np.issubdtype(value.dtype, np.floating):
                spread = float(value.std()) or 1.0
                feed[name] = (generator.standard_normal(value.shape) * spread + float(value.mean())).astype(value.dtype)
            elif value.dtype == np.bool_:
                feed[name] = generator.random(value.shape) < 0.5
            else:
                low, high = int(value.min()), int(value.max())
                feed[name] = generator.integers(low, high + 1, value.shape).astype(value.dtype)
        feeds.append(feed)
    return feeds
