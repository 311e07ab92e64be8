"""The step `prune`: weights become exact zeros, exactly as many as asked for, by any method in any pattern.

Methods that look at a layer's inputs (Wanda, SparseGPT, ALPS) go through the model once, all calibration batches
together, and every layer sees what the layers pruned before it produce (walk.py). Zeros alone save nothing in a dense
kernel: which patterns pay is the target file's to say.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.errors import DataError, RecipeError
from edgeredux.model import Model
from edgeredux.processes import share_of
from edgeredux.pruning import allocation as ways
from edgeredux.pruning.layers import Layer, block_of, check_fit, layers
from edgeredux.pruning.methods import Method, method, name_of
from edgeredux.pruning.reorder import reordered
from edgeredux.pruning.scores import element_scores
from edgeredux.pruning.sensitivity_allocation import sensitivity_shares
from edgeredux.pruning.statistics import Collector, agreed
from edgeredux.pruning.walk import Inputs, walk
from edgeredux.pruning.work import Work
from edgeredux.seams import ReduceContext
from edgeredux.sparsity.asked import check_zeros, known_pattern, zeros_asked
from edgeredux.sparsity.patterns import Pattern, parse

_OWL_SPREAD = 0.08


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Prune:
    """Set the share `zeros` of the weights to 0.

    `method`: magnitude, random, taylor, fisher, wanda, sparsegpt or alps, or {name: {options}}. `pattern`:
    unstructured, n:m, a block, tile (sparsity/patterns.py); n:m says its zeros itself. `allocation`: uniform, global,
    owl or sensitivity (allocation.py); the last two keep each layer within `spread` of `zeros` (0.08 for owl, 0.2 for
    sensitivity unless said). `compare`: single weights compete in the whole matrix or within their output row; "auto"
    is what the method's paper does. `reference`: whose output a solver tries to keep at each layer, the layer's own on
    the inputs as they are by then ("layer", as published) or that of the dense model ("dense"), which also makes up
    for what the layers before have lost and costs one more pass. Only layers of encoder and decoder blocks (of any
    part in a plain nn.Module), without those whose name matches a pattern of `exclude` (shell style, "*.query"). Zeros
    that are there already count. `reorder` (tile): FFN neurons and heads are first put in an order in which the tiles
    keep more of the method's scores (reorder.py).
    """

    zeros: Annotated[float, Field(gt=0, lt=1)] | None = None
    method: str | dict[str, Any] = "magnitude"
    pattern: str = "unstructured"
    allocation: Literal["uniform", "global", "owl", "sensitivity"] = "uniform"
    compare: Literal["auto", "matrix", "row"] = "auto"
    reference: Literal["layer", "dense"] = "layer"
    outlier: Annotated[float, Field(gt=1, le=100)] = 5.0
    spread: Annotated[float, Field(ge=0, lt=1)] | None = None
    exclude: tuple[str, ...] = ()
    reorder: bool = False

    @field_validator("pattern")
    @classmethod
    def _pattern_is_known(cls, value: str) -> str:
        return known_pattern(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Prune:
        try:
            method(self.method)
        except RecipeError as problem:
            raise ValueError(str(problem)) from problem
        check_zeros(self.pattern, self.zeros, self.allocation)
        if self.compare != "auto" and self.pattern != "unstructured":
            raise ValueError(f"compare is for pattern unstructured; {self.pattern} says itself which weights compete")
        if self.reorder and not parse(self.pattern).bands:
            raise ValueError(f"reorder is for pattern tile; the order of units changes nothing in {self.pattern}")
        if self.reference == "dense" and method(self.method).needs != "gram":
            raise ValueError("reference: dense refits weights to the dense model, which sparsegpt and alps do")
        return self

    @property
    def share(self) -> float:
        """The zeros asked for: 0.5 unless said."""
        return zeros_asked(self.pattern, self.zeros, 0.5)

    @property
    def looks_at_inputs(self) -> bool:
        """Whether calibration data is passed through the model at all."""
        guided = self.allocation in ("owl", "sensitivity") or self.reorder
        return guided or method(self.method).needs != "weights"

    def check(self, model: Model) -> None:
        """Raise RecipeError or ModelError when no layer is left to prune or one does not take the pattern."""
        check_fit(layers(model, self.exclude), self.pattern_of(method(self.method)), "prune")

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The model with zeros; Change details hold weights, zeros and relative errors by layer."""
        return self.pruned(model, context, None)

    def pruned(self, model: Model, context: ReduceContext, shares: Mapping[str, float] | None) -> tuple[Model, Change]:
        """As `apply`, with zeros by layer as in `shares`, whose weighted mean is `zeros`, instead of `allocation`."""
        self.check(model)
        torch.set_num_threads(context.threads)
        chosen = method(self.method)
        whole = context
        if context.processes.count > 1:
            if chosen.needs == "gradients":
                raise RecipeError(
                    f"prune: method {name_of(self.method)} takes gradients over all data: use one process"
                )
            context = replace(context, calibration=share_of(context.processes, context.calibration, "prune"))
        order: dict[str, Any] = {}
        if self.reorder:
            model, order = self._reordered(model, whole)
        student = model.after(copy.deepcopy(model.module).eval(), repr(self))
        work = Work(layers(student, self.exclude), chosen, self.pattern_of(chosen))
        dense = (model, layers(model, self.exclude)) if self.reference == "dense" else None
        with torch.no_grad():
            removed = self._allocate(student, work, context, whole, shares)
            errors = work.zero(student, removed, context, dense)
            agreed(context.processes, {layer.name: layer.matrix() for layer in work.layers})
        zeros = {layer.name: int((layer.matrix() == 0).sum()) for layer in work.layers}
        weights = sum(layer.matrix().numel() for layer in work.layers)
        context.progress(name_of(self.method), 1, 1)
        why = (
            f"{sum(zeros.values()):,} of {weights:,} weights in {len(zeros)} layers are zero "
            f"({name_of(self.method)}, {self.pattern}, {self.allocation})"
        )
        details = {"weights": weights, "zeros": sum(zeros.values()), "zeros_by_layer": zeros, "pattern": self.pattern}
        if self.reorder:
            details["reordered"] = order
        if errors:
            details["relative_error_by_layer"] = errors
        return student, Change("prune", sum(zeros.values()) > 0, why, details)

    def _reordered(self, model: Model, context: ReduceContext) -> tuple[Model, dict[str, Any]]:
        if not context.calibration:
            raise DataError("prune: reorder needs calibration data, to prove that the units are what they seem")
        chosen = method(self.method)
        names = [layer.name for layer in layers(model, self.exclude)]
        with torch.no_grad():
            scores = element_scores(model, names, chosen, context.calibration, context.seed, context.progress)
        moved, said = reordered(model, scores, self.pattern_of(chosen), self.share, context.calibration[0])
        return replace(moved, history=model.history), said

    def pattern_of(self, chosen: Method) -> Pattern:
        """The pattern, single weights competing where the recipe or else the method says."""
        return parse(self.pattern, chosen.compare if self.compare == "auto" else self.compare)

    def uniform_counts(self, model: Model) -> dict[str, int]:
        """Steps of the pattern to remove by layer when all layers get the same share; shapes are all it looks at."""
        return ways.uniform(
            _asked(model, layers(model, self.exclude)), self.pattern_of(method(self.method)), self.share
        )

    def _allocate(
        self,
        model: Model,
        work: Work,
        context: ReduceContext,
        whole: ReduceContext,
        shares: Mapping[str, float] | None,
    ) -> dict[str, int]:
        asked = _asked(model, work.layers)
        if shares is not None:
            return ways.by_share(asked, work.pattern, shares, self.share)
        if self.allocation == "uniform":
            return ways.uniform(asked, work.pattern, self.share)
        names = [layer.name for layer in work.layers]
        if self.allocation == "owl":
            for layer, share in zip(work.layers, _outliers(model, work, context, self.outlier), strict=True):
                asked[layer.name] = replace(asked[layer.name], outliers=share)
            spread = _OWL_SPREAD if self.spread is None else self.spread
            return ways.by_share(asked, work.pattern, ways.owl_shares(asked, self.share, spread), self.share)
        if self.allocation == "sensitivity":
            guided = sensitivity_shares(model, work, whole, self.share, self.spread)  # the same in every process
            return ways.by_share(asked, work.pattern, guided, self.share)
        scores = element_scores(
            model, names, work.method, context.calibration, context.seed, context.progress, context.processes
        )
        values = list(scores.values())
        if work.method.needs in ("norms", "gram"):
            values = ways.relative(values)
        for name, value in zip(names, values, strict=True):
            asked[name] = replace(asked[name], scores=value)
        return ways.globally(asked, work.pattern, self.share)


def _asked(model: Model, parts: Sequence[Layer]) -> dict[str, ways.Asked]:
    shapes = {layer.name: layer.matrix().shape for layer in parts}
    return {name: ways.Asked(rows, columns, block_of(model, name) or "") for name, (rows, columns) in shapes.items()}


def _outliers(model: Model, work: Work, context: ReduceContext, outlier: float) -> list[float]:
    found: dict[str, float] = {}
    collector = Collector("norms", context.processes)

    def visit(layer: Layer, inputs: Inputs) -> None:
        collector.positions(inputs, layer.name)
        known = collector.take(inputs)
        parts = zip(layer.matrix().chunk(layer.groups), known, strict=True)
        shares = [ways.outlier_share(part, item.norms, outlier) for part, item in parts if item.norms is not None]
        found[layer.name] = sum(shares) / len(shares)

    walk(model, work.layers, context.calibration, visit, context.progress)
    return [found[layer.name] for layer in work.layers]
