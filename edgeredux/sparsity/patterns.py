"""Patterns: which weights are kept or removed together (a cell), and which cells compete for being kept.

    unstructured    single weights compete in the whole matrix (or within their output row)
    n:m             single weights; n are kept of every m neighbours of an output row: "2:4", "4:8", "1:4"
    block           cells of h output rows by w inputs compete in the whole matrix: "1x4", "1x16", "4x4"
    tile            "tile:GxB": output rows in G bands, cells of a whole band by B inputs compete within their band, so
                    that every band keeps equally many blocks and becomes one dense product of gathered inputs

A weight is a matrix [outputs, inputs] everywhere here. Counts are exact: a pattern goes in equal `steps`, `removed`
gives the steps for a share of zeros as floor(zeros * steps), `mask` removes exactly that many: ties by lower index.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch

from edgeredux.errors import RecipeError
from edgeredux.sparsity.counts import count_of, smallest

ALLOWED = "unstructured, n:m such as 2:4, a block such as 1x4 or block:4x4, tile or tile:GxB such as tile:4x16"
_TILE = (4, 16)


@dataclass(frozen=True)
class Pattern:
    """Cells of `height` x `width` weights (`bands`: height is outputs / bands) and the groups they compete in."""

    name: str
    height: int = 1
    width: int = 1
    bands: int = 0
    window: int = 0  # m of n:m
    kept: int = 0  # n of n:m
    compete: Literal["matrix", "row"] = "matrix"

    @property
    def fixed_zeros(self) -> float | None:
        """The share of zeros that the pattern itself says (n:m), else None."""
        return 1 - self.kept / self.window if self.window else None

    def misfit(self, rows: int, columns: int) -> str | None:
        """Why a matrix of this shape cannot take the pattern, None when it can."""
        if self.window and columns % self.window:
            return f"{columns} inputs are no multiple of {self.window}"
        if self.bands and rows % self.bands:
            return f"{rows} outputs are no multiple of {self.bands} bands"
        if not self.bands and rows % self.height:
            return f"{rows} outputs are no multiple of {self.height}"
        if columns % self.width:
            return f"{columns} inputs are no multiple of {self.width}"
        return None

    def cell(self, rows: int) -> tuple[int, int]:
        """Height and width of a cell in a matrix of `rows` outputs."""
        return (rows // self.bands if self.bands else self.height), self.width

    def steps(self, rows: int, columns: int) -> int:
        """In how many equal steps this matrix goes from dense to empty; each removes rows * columns / steps weights."""
        height, width = self.cell(rows)
        if self.window:
            return self.window
        across = columns // width
        return across if self.compete == "row" else across * (rows // height)

    def removed(self, rows: int, columns: int, zeros: float) -> int:
        """Steps to remove for the share `zeros`: floor(zeros * steps)."""
        return self.window - self.kept if self.window else count_of(zeros, self.steps(rows, columns))

    def cell_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Sum of the scores in each cell: [outputs / height, inputs / width]."""
        rows, columns = scores.shape
        height, width = self.cell(rows)
        if height == width == 1:
            return scores
        return scores.reshape(rows // height, height, columns // width, width).sum((1, 3))

    def mask(self, scores: torch.Tensor, removed: int) -> torch.Tensor:
        """True where a weight goes: `removed` steps of the cells with the smallest summed scores. Bool, like scores."""
        height, width = self.cell(len(scores))
        cells = self.cell_scores(scores)
        if self.window:
            groups = cells.reshape(-1, self.window)
        elif self.compete == "row":
            groups = cells
        else:
            groups = cells.reshape(1, -1)
        gone = smallest(groups, removed).reshape(cells.shape)
        if height == width == 1:
            return gone
        return gone.repeat_interleave(height, 0).repeat_interleave(width, 1)

    def violation(self, weight: torch.Tensor) -> str | None:
        """Why the zeros of `weight` do not keep the pattern (a cell is partly zero, groups keep unequally), else None.

        Unstructured zeros have nothing to break.
        """
        rows, columns = weight.shape
        misfit = self.misfit(rows, columns)
        if misfit is not None:
            return misfit
        if self.window:
            most = int((weight != 0).reshape(-1, self.window).sum(1).max())
            return f"a group of {self.window} keeps {most}, not {self.kept}" if most > self.kept else None
        height, width = self.cell(rows)
        left = self.cell_scores((weight != 0).to(torch.float32))
        partly = int(((left > 0) & (left < height * width)).sum())
        if partly:
            return f"{partly} of {left.numel()} cells of {height}x{width} are partly zero"
        if self.bands:
            kept = (left > 0).sum(1)
            if int(kept.min()) != int(kept.max()):
                return f"bands keep between {int(kept.min())} and {int(kept.max())} blocks"
        return None


def parse(text: str, compete: Literal["matrix", "row"] = "matrix") -> Pattern:
    """The pattern called `text`. Raises RecipeError that lists what is allowed."""
    name = text.strip().lower()
    if name == "unstructured":
        return Pattern("unstructured", compete=compete)
    if found := re.fullmatch(r"(\d{1,3}):(\d{1,3})", name):
        kept, window = int(found[1]), int(found[2])
        if not 0 < kept < window:
            raise RecipeError(f"pattern {text!r}: n:m keeps n of m weights, so 0 < n < m")
        return Pattern(name, window=window, kept=kept)
    if found := re.fullmatch(r"(?:block:)?(\d{1,4})x(\d{1,4})", name):
        height, width = int(found[1]), int(found[2])
        if height * width < 2:
            raise RecipeError(f"pattern {text!r}: a block has at least two weights; for single ones say unstructured")
        return Pattern(f"{height}x{width}", height, width)
    if found := re.fullmatch(r"tile(?::(\d{1,4})x(\d{1,4}))?", name):
        bands, width = (int(found[1]), int(found[2])) if found[1] else _TILE
        if bands < 1 or width < 1:
            raise RecipeError(f"pattern {text!r}: tile:GxB needs at least one band and one input a block")
        return Pattern(f"tile:{bands}x{width}", width=width, bands=bands, compete="row")
    raise RecipeError(f"pattern {text!r} is unknown. Allowed: {ALLOWED}")
