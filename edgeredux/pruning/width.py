"""The step `width`: dimensions of the residual stream go, in everything that writes to it or reads from it.

Which tensors those are is traced through the graph (coupling.py): embeddings, norms, the inputs and outputs of every
block, the head. What is left is proven to be the dense model with these dimensions masked (coupling_cut.py), then
norms and layers that read the stream are refitted to what the dense ones say (width_repair.py).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux import shapes
from edgeredux.artifact import Change
from edgeredux.batching import by_length
from edgeredux.errors import DataError, ModelError, RecipeError, one_line
from edgeredux.model import Model
from edgeredux.pruning.coupling import Coupling, Group, Labels
from edgeredux.pruning.coupling_cut import cut, prove
from edgeredux.pruning.coupling_trace import coupling, trace
from edgeredux.pruning.methods import among
from edgeredux.pruning.stock import changed, follow_width, set_everywhere, width_change
from edgeredux.pruning.width_repair import refit
from edgeredux.pruning.width_scores import IMPORTANCE, dimension_scores
from edgeredux.seams import ReduceContext
from edgeredux.sparsity.counts import count_of

_SUPPORTED = "Supported: transformers models with one hidden_size whose layers are Linears, embeddings and norms"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Width:
    """Remove floor(share * hidden_size) dimensions of the residual stream, with least importance (width_scores.py).

    What is kept is rounded up to a multiple of `multiple_of`. An encoder and a decoder with a stream of their own each
    choose their own dimensions, equally many. Attention heads keep their size. Where the config can say the new
    hidden_size beside it (Llama, Qwen, Mistral, Phi-3, ViT), it does, and stock transformers loads the result; where
    it would mean other heads or another scale (BERT, GPT-2, T5, Gemma), edgeredux_shapes.json says the shapes and the
    config stays. The outputs of an embedding model get as many dimensions as are kept.
    """

    share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    importance: Annotated[str, among(IMPORTANCE)] = "activation"
    multiple_of: Annotated[int, Field(ge=1, le=4096)] = 1
    repair: Literal["least_squares", "none"] = "least_squares"
    # Far above the other steps': every layer reads a stream that lost something, and a closer fit would over-correct.
    ridge: Annotated[float, Field(gt=0, le=100)] = 1.0

    def check(self, model: Model) -> None:
        """Raise ModelError for a model without one hidden width, RecipeError for a width its config does not take."""
        width = _width(model)
        kept = width - self._removed(width)
        if kept == width:
            raise RecipeError(f"width: share {self.share:g} of {width} dimensions is none: nothing would be removed")
        config: Any = model.module.config
        change = width_change(model.module, kept)
        if change is None:
            return
        try:
            shapes.stock(model.module, type(config).from_dict(changed(config, change).to_dict()))
        except Exception as problem:  # each class has its own way to refuse a size
            heads = int(getattr(config, "num_attention_heads", 1))
            near = f"; with multiple_of: {heads} it is {_upwards(kept, heads)}" if kept % heads else ""
            raise RecipeError(
                one_line(f"width: {type(config).__name__} takes no hidden_size {kept} of {width}{near}: {problem}", 300)
            ) from problem

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The narrower model; Change details hold the dimensions kept of each stream."""
        self.check(model)
        torch.set_num_threads(context.threads)
        if not context.calibration:
            raise DataError("width: there is no calibration data")
        feeds = by_length(model, context.calibration)
        graph = trace(model, feeds[0])
        found = coupling(model, graph, outputs_shrink=True)
        width = _width(model)
        streams = _streams(model, found, width)
        scores = dimension_scores(model, found, streams, self.importance, feeds, context.seed)
        count = self._removed(width)
        # Ties go to the lower number: the count is exact, whatever the scores.
        order = [torch.argsort(score, descending=True, stable=True)[: width - count].sort().values for score in scores]
        gone = np.concatenate(
            [np.delete(stream.units, kept.numpy()) for stream, kept in zip(streams, order, strict=True)]
        )
        why = prove(model, graph, found, gone)
        if why is not None:
            raise ModelError(f"width: model {model.name}: {why}. {_SUPPORTED}")
        student = model.after(copy.deepcopy(model.module).eval(), repr(self))
        with torch.no_grad():
            cut(student.module, found, gone)
            refitted = 0
            if self.repair == "least_squares":
                refitted = refit(model, student, found, gone, feeds, self.ridge, context.progress)
        change = width_change(student.module, width - count)
        if change is not None:
            set_everywhere(student.module, change)
            follow_width(student.module, width)
        context.progress("width", 1, 1)
        before, after = model.parameters(), student.parameters()
        line = f"hidden width {width} to {width - count} ({self.importance}); {before:,} to {after:,} parameters"
        details = {
            "width_before": width,
            "width_after": width - count,
            "kept": {stream.name: kept.tolist() for stream, kept in zip(streams, order, strict=True)},
            "refitted": refitted,
            "parameters_before": before,
            "parameters_after": after,
        }
        return student, Change("width", count > 0, line, details)

    def _removed(self, width: int) -> int:
        return max(0, width - _upwards(width - count_of(self.share, width), self.multiple_of))


def _upwards(value: int, step: int) -> int:
    return math.ceil(value / step) * step


def _width(model: Model) -> int:
    """The hidden width that the config says. Raises ModelError where it says none or several."""
    width = getattr(getattr(model.module, "config", None), "hidden_size", None)
    if not model.is_transformers or not isinstance(width, int):
        raise ModelError(f"width: model {model.name} has no one hidden_size. {_SUPPORTED}; others take step channels")
    return width


def _streams(model: Model, found: Coupling, width: int) -> list[Group]:
    """The groups of `width` units that norms over the whole width read. Raises ModelError when there is none."""
    normed = [labels for _, labels in found.blended if len(labels) == width]
    streams = [
        group
        for group in found.groups
        if len(group.units) == width and any(np.array_equal(np.sort(labels), np.sort(group.units)) for labels in normed)
    ]
    labels: Sequence[Labels] = [labels for labels in normed if not any(np.isin(labels, s.units).any() for s in streams)]
    for port in found.writers:
        why = found.left_alone.get(port.module)
        if why is not None and any(np.isin(port.labels, other).any() for other in labels):
            raise ModelError(
                f"width: model {model.name}: the stream that {port.module} writes must stay: {why}. {_SUPPORTED}"
            )
    if not streams:
        raise ModelError(f"width: model {model.name} has no residual stream of {width} dimensions. {_SUPPORTED}")
    return streams
