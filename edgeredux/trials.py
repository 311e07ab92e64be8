"""What a search tried, setting by setting, as a step's details, the history and the report hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeredux.errors import one_line
from edgeredux.readings import AnyReading, from_json
from edgeredux.report import Check, describe_check


@dataclass(frozen=True)
class Trial:
    """One setting: the share of zeros asked for, what that really left, and each limit with its reading.

    `zero_weights` of `weights` prunable ones are exactly zero; both None where shapes shrank instead.
    """

    zeros: float
    checks: tuple[Check, ...]
    parameters: int
    zero_weights: int | None = None
    weights: int | None = None

    @property
    def within(self) -> bool:
        """Whether every limit is kept. A missing reading keeps none."""
        return all(check.passed for check in self.checks)

    def describe(self) -> str:
        """The trial in words, on one line."""
        said = "; ".join(describe_check(check) for check in self.checks)
        return one_line(f"zeros {self.zeros:g}: {'within the limit' if self.within else 'missed'}: {said}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "zeros": self.zeros,
            "within": self.within,
            "checks": [check.to_json() for check in self.checks],
            "parameters": self.parameters,
            "zero_weights": self.zero_weights,
            "weights": self.weights,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Trial:
        """The trial that `to_json` wrote; whether it is within is taken anew."""
        checks = tuple(Check.from_json(check) for check in said["checks"])
        return cls(said["zeros"], checks, said["parameters"], said["zero_weights"], said["weights"])


@dataclass(frozen=True)
class Trials:
    """A whole search: `tried` in order, the model as it came (zeros 0) first; `taken` is the one that was kept.

    `dense`: the limited metrics of the dense model on the same samples.
    """

    tried: Sequence[Trial]
    taken: float
    dense: Mapping[str, AnyReading]
    how: str  # method, pattern, allocation, data

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "how": self.how,
            "taken": self.taken,
            "dense": {name: value.to_json() for name, value in self.dense.items()},
            "tried": [trial.to_json() for trial in self.tried],
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Trials:
        """The search that `to_json` wrote."""
        dense = {name: from_json(value) for name, value in said["dense"].items()}
        return cls(tuple(Trial.from_json(item) for item in said["tried"]), said["taken"], dense, said["how"])
