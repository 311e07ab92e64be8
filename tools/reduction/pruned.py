"""Pruned models and what is really zero in them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeredux.model import Model
from edgeredux.pruning.layers import layers
from edgeredux.pruning.unstructured import Prune
from edgeredux.seams import Feed, ReduceContext


@dataclass(frozen=True)
class Case:
    """One way to prune, with the share of zeros that it has in all layers together."""

    zeros: float
    pattern: str
    method: str
    allocation: str = "uniform"
    reference: str = "layer"  # whose output a solver keeps at each layer
    reorder: bool = False  # units first put in an order in which tiles keep more

    def options(self) -> dict[str, Any]:
        """Options of the recipe step `prune`."""
        said: dict[str, Any] = {
            "method": self.method,
            "pattern": self.pattern,
            "allocation": self.allocation,
            "reference": self.reference,
            "reorder": self.reorder,
        }
        return said if ":" in self.pattern and self.pattern[0].isdigit() else {**said, "zeros": self.zeros}

    @property
    def title(self) -> str:
        """Method, with its allocation and reference where those are not as published."""
        more = [
            "" if self.allocation == "uniform" else f" + {self.allocation}",
            "" if self.reference == "layer" else " + dense",
            " + order" if self.reorder else "",
        ]
        return "".join([self.method, *more])


def context(dense: Model, calibration: Sequence[Feed], threads: int, scratch: Path) -> ReduceContext:
    """What a step gets when nothing is trained."""
    return ReduceContext(teacher=dense, calibration=calibration, training=(), seed=0, threads=threads, scratch=scratch)


def prune(dense: Model, case: Case, calibration: Sequence[Feed], threads: int) -> Model:
    """The dense model pruned one-shot. Raises AssertionError when the zeros are not exactly those asked for."""
    with tempfile.TemporaryDirectory() as folder:
        model, _ = Prune(**case.options()).apply(dense, context(dense, calibration, threads, Path(folder)))
    zeros, weights = count_zeros(model)
    if ":" in case.pattern and case.pattern[0].isdigit():
        broken = broken_groups(model, case.pattern)
        assert broken == 0, f"{case}: {broken} groups do not keep {case.pattern}"
    # Blocks and tiles come in whole cells, by layer: less than one cell a layer may be missing.
    assert 0 <= case.zeros - zeros / weights < 0.01, f"{case}: {zeros / weights:.4f} of the weights are zero"
    return model


def densities(model: Model) -> dict[str, float]:
    """Share of weights that are not exactly zero, by prunable layer."""
    return {layer.name: float((layer.matrix() != 0).double().mean()) for layer in layers(model)}


def count_zeros(model: Model) -> tuple[int, int]:
    """Exact zeros and weights of all prunable layers."""
    matrices = [layer.matrix() for layer in layers(model)]
    return sum(int((matrix == 0).sum()) for matrix in matrices), sum(matrix.numel() for matrix in matrices)


def broken_groups(model: Model, pattern: str) -> int:
    """Groups of m neighbours in an output row with more than n weights that are not zero, over all prunable layers."""
    n, m = (int(part) for part in pattern.split(":"))
    broken = 0
    for layer in layers(model):
        matrix: torch.Tensor = layer.matrix()
        kept = (matrix != 0).reshape(len(matrix), -1, m).sum(-1)
        broken += int((kept > n).sum())
    return broken
