"""How to score: every method takes a weight matrix, what is known of its inputs, a pattern and a count.

Scores are energies (squares), so that those of a cell add up to what the layer loses with it: the magnitude mask is the
Euclidean projection min ||W - W'||_F with the pattern's count, whatever the cells.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass as plain
from dataclasses import field
from typing import Annotated, Any, Literal, Protocol, TypeAlias, TypeVar

import torch
from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from edgeredux.errors import RecipeError, one_line, unknown
from edgeredux.sparsity.patterns import Pattern

T = TypeVar("T")
Needs: TypeAlias = Literal["weights", "gradients", "norms", "gram"]
_STRICT = ConfigDict(extra="forbid")


@plain(frozen=True)
class Statistics:
    """What is known of one matrix [outputs, inputs]; a method finds what it `needs` and None elsewhere."""

    norms: torch.Tensor | None = None  # ||x_j||^2 over all positions, [inputs]
    gram: torch.Tensor | None = None  # sum of x x^T over all positions, [inputs, inputs]
    gradient: torch.Tensor | None = None  # mean |dL/dw| over batches, [outputs, inputs]
    fisher: torch.Tensor | None = None  # mean (dL/dw)^2 over batches, [outputs, inputs]
    seed: int = 0
    memo: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, worked out once for all layers that share these inputs (query, key and value)."""
        if key not in self.memo:
            self.memo[key] = make()
        found: T = self.memo[key]
        return found

    def split(self, groups: int) -> list[Statistics]:
        """What is known of each of the matrix' equal row groups, where that was taken by weight; seeds of their own."""
        if groups == 1:
            return [self]
        slopes = (None,) * groups if self.gradient is None else self.gradient.chunk(groups)
        squares = (None,) * groups if self.fisher is None else self.fisher.chunk(groups)
        return [
            Statistics(gradient=slope, fisher=square, seed=self.seed * 1_000_003 + group)
            for group, (slope, square) in enumerate(zip(slopes, squares, strict=True))
        ]


class Method(Protocol):
    """A way to choose what goes, and perhaps to refit what stays."""

    @property
    def needs(self) -> Needs:
        """Which statistics it reads: the caller takes no others."""

    @property
    def compare(self) -> Literal["matrix", "row"]:
        """Where single weights compete when the recipe does not say."""

    def score(self, weight: torch.Tensor, known: Statistics) -> torch.Tensor:
        """What the layer or model loses with each weight, [outputs, inputs]."""

    def solve(self, weight: torch.Tensor, known: Statistics, pattern: Pattern, removed: int) -> torch.Tensor:
        """The new matrix with `removed` steps of the pattern exactly zero; `weight` is left alone."""


class Masking:
    """A method that only scores: what is kept stays as it is."""

    needs: Needs = "weights"
    compare: Literal["matrix", "row"] = "matrix"

    def score(self, weight: torch.Tensor, known: Statistics) -> torch.Tensor:
        """See Method."""
        raise AssertionError("each method has its own")

    def solve(self, weight: torch.Tensor, known: Statistics, pattern: Pattern, removed: int) -> torch.Tensor:
        """The weights outside the mask, unchanged."""
        return weight.masked_fill(pattern.mask(self.score(weight, known), removed), 0.0)


@dataclass(frozen=True, config=_STRICT)
class Magnitude(Masking):
    """w^2: the projection onto the pattern in the Euclidean norm."""

    def score(self, weight: torch.Tensor, known: Statistics) -> torch.Tensor:
        """See Method."""
        return weight.square()


@dataclass(frozen=True, config=_STRICT)
class Random(Masking):
    """Uniform random scores: the baseline that every other method has to beat. Fixed by the recipe's seed."""

    def score(self, weight: torch.Tensor, known: Statistics) -> torch.Tensor:
        """See Method."""
        generator = torch.Generator().manual_seed(known.seed)
        return torch.rand(weight.shape, generator=generator)


@dataclass(frozen=True, config=_STRICT)
class Wanda(Masking):
    """(|w_ij| * ||x_j||)^2, compared within each output row (Sun et al. 2023, eq. 1, squared: the same order)."""

    needs = "norms"
    compare = "row"

    def score(self, weight: torch.Tensor, known: Statistics) -> torch.Tensor:
        """See Method."""
        assert known.norms is not None
        return weight.square() * known.norms.to(weight.dtype)


@dataclass(frozen=True, config=_STRICT)
class Taylor(Masking):
    """(|w| * E|g|)^2: the first-order change of the loss without this weight (Molchanov et al. 2019, eq. 6)."""

    needs = "gradients"

    def score(self, weight: torch.Tensor, known: Statistics) -> torch.Tensor:
        """See Method."""
        assert known.gradient is not None
        return (weight * known.gradient).square()


@dataclass(frozen=True, config=_STRICT)
class Fisher(Masking):
    """w^2 * E[g^2]: the second-order change with the diagonal empirical Fisher for the Hessian (Theis et al. 2018)."""

    needs = "gradients"

    def score(self, weight: torch.Tensor, known: Statistics) -> torch.Tensor:
        """See Method."""
        assert known.fisher is not None
        return weight.square() * known.fisher


@dataclass(frozen=True, config=_STRICT)
class SparseGPT:
    """Optimal brain surgeon, column by column, the rest of the row refitted to each loss (sparsegpt.py)."""

    damping: Annotated[float, Field(gt=0, le=1)] = 0.03  # of the mean of the Gram matrix' diagonal
    block: Annotated[int, Field(ge=1, le=4096)] = 128  # columns that are chosen from together
    needs = "gram"
    compare = "matrix"

    def score(self, weight: torch.Tensor, known: Statistics) -> torch.Tensor:
        """w^2 / [H^-1]_jj: the layer's error without it when all others make up for it (Hassibi & Stork 1993)."""
        factor = self._factor(known)
        return weight.square() / factor.square().sum(0)  # the diagonal of U^T U

    def solve(self, weight: torch.Tensor, known: Statistics, pattern: Pattern, removed: int) -> torch.Tensor:
        """See Method."""
        from edgeredux.pruning.sparsegpt import sparsegpt

        assert known.gram is not None
        factor = None if pattern.bands else self._factor(known)
        return sparsegpt(weight, known.gram, pattern, removed, damping=self.damping, block=self.block, factor=factor)

    def _factor(self, known: Statistics) -> torch.Tensor:
        from edgeredux.pruning.sparsegpt import inverse_factor

        gram = known.gram
        assert gram is not None
        return known.once(("inverse factor", self.damping), lambda: inverse_factor(gram, self.damping))


@dataclass(frozen=True, config=_STRICT)
class Alps:
    """ADMM on the layer-wise l0 problem, then conjugate gradients on the support it found (alps.py)."""

    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 300
    refit: Annotated[int, Field(ge=0, le=10_000)] = 20
    needs = "gram"
    compare = "matrix"

    def score(self, weight: torch.Tensor, known: Statistics) -> torch.Tensor:
        """w^2 * ||x_j||^2, by which the solver projects."""
        assert known.gram is not None
        return weight.square() * known.gram.diagonal().to(weight.dtype)

    def solve(self, weight: torch.Tensor, known: Statistics, pattern: Pattern, removed: int) -> torch.Tensor:
        """See Method."""
        from edgeredux.pruning.alps import alps

        assert known.gram is not None
        return alps(
            weight, known.gram, pattern, removed, damping=self.damping, iterations=self.iterations, refit=self.refit
        )


METHODS: Mapping[str, type[Any]] = {
    "magnitude": Magnitude,
    "random": Random,
    "taylor": Taylor,
    "fisher": Fisher,
    "wanda": Wanda,
    "sparsegpt": SparseGPT,
    "alps": Alps,
}


def among(names: Iterable[str]) -> AfterValidator:
    """For an option's type: the name must be one of these."""
    allowed = tuple(names)

    def known(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"allowed are {', '.join(allowed)}")
        return value

    return AfterValidator(known)


def name_of(said: str | Mapping[str, Any]) -> str:
    """The name in what an option `method` says: itself, or the key of {name: {options}}."""
    return said if isinstance(said, str) else next(iter(said), "")


def method(said: str | Mapping[str, Any], where: str = "prune") -> Method:
    """The method of a name, or of {name: {options}}. Raises RecipeError that lists what is allowed."""
    name = name_of(said)
    options = {} if isinstance(said, str) else said.get(name, {})
    if name not in METHODS or (not isinstance(said, str) and len(said) != 1):
        raise RecipeError(unknown("method", name, METHODS, where))
    try:
        made: Method = METHODS[name](**(options or {}))
    except (ValidationError, TypeError) as problem:
        first = problem.errors()[0]["msg"] if isinstance(problem, ValidationError) else str(problem)
        raise RecipeError(one_line(f"{where}: method {name}: {options!r}: {first}")) from problem
    return made
