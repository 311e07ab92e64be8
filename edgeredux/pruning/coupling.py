"""Which channels belong together: removing one takes rows, columns and entries of many weights at once.

Every dimension of every tensor in a model's graph is an array of labels, one a position; 0 is a position that must
stay. Operators join labels (a residual add joins channel i of one branch with channel i of the other) or pin them to
their place (a mean over channels would change). What is joined in the end is one *unit*: it is kept or removed
whole. Units that touch the same dimensions of the same weights compete with each other: a *group*.

The idea of a dependency graph is Fang et al. 2023 (DepGraph); labels per position rather than per layer also follow
channels through slices, padding, concatenation and flattening.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Labels: TypeAlias = npt.NDArray[np.int64]  # one dimension of a tensor, a label a position
Dims: TypeAlias = "tuple[Labels, ...]"  # a tensor: its dimensions
Place: TypeAlias = "tuple[str, int]"  # (parameter or buffer, dimension)


@dataclass(frozen=True)
class Port:
    """Where a Linear or convolution makes channels (`dim` of its weight is its outputs) or reads them (its inputs).

    `labels` are those of the channels on its way in or out; the weight's own dimension is shorter in a grouped one.
    """

    module: str
    labels: Labels
    place: Place


@dataclass(frozen=True)
class Attribute:
    """A number that a module keeps about its shape: labels left of `labels` divided by `divisor`."""

    module: str
    name: str
    labels: Labels
    divisor: int = 1
    in_tuple: bool = False


class Book:
    """The labels of a graph while it is walked, and what operators said about them."""

    def __init__(self) -> None:
        self._parent = [0]
        self._pins: list[tuple[Labels, str]] = []
        self.places: dict[Place, Labels] = {}
        self.writers: list[Port] = []
        self.readers: list[Port] = []
        self.norms: list[tuple[str, Labels]] = []  # BatchNorm weights and their channels
        self.blended: list[tuple[Any, Labels]] = []  # nodes of norms whose statistics span channels
        self.outputs: list[Dims] = []  # of the model, in order
        self.attributes: list[Attribute] = []
        self.following: dict[str, str] = {}  # a convolution -> the BatchNorm that alone reads what it makes

    def fresh(self, count: int) -> Labels:
        """`count` new labels."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def find(self, label: int) -> int:
        """The label that stands for all labels joined with this one."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def roots(self, labels: Labels) -> Labels:
        """`find` of each label."""
        return np.array([self.find(int(label)) for label in labels], dtype=np.int64)

    def join(self, first: Labels, second: Labels, why: str) -> None:
        """Position i of both is the same channel. A position that must stay keeps the other in its place."""
        fixed = (first == 0) | (second == 0)
        if fixed.any():
            self.pin(np.concatenate([first[fixed], second[fixed]]), why)
        for a, b in np.unique(np.stack([first[~fixed], second[~fixed]]), axis=1).T.tolist():
            a, b = self.find(a), self.find(b)
            if a != b:
                self._parent[max(a, b)] = min(a, b)

    def pin(self, labels: Labels, why: str) -> None:
        """These positions must stay, and why."""
        real = labels[labels != 0]
        if len(real):
            self._pins.append((real, why))

    def reasons(self) -> dict[int, str]:
        """Root label -> why it must stay, for all that must; the first reason that was given."""
        found: dict[int, str] = {}
        for labels, why in self._pins:
            for root in np.unique(self.roots(np.unique(labels))).tolist():
                found.setdefault(root, why)
        return found


@dataclass(frozen=True)
class Group:
    """Units that compete. `units` are root labels, in the order of the first writer's outputs."""

    units: Labels
    writers: tuple[Port, ...]
    readers: tuple[Port, ...]
    norms: tuple[tuple[str, Labels], ...]  # BatchNorm weights and their channels

    @property
    def name(self) -> str:
        """The layers that make these channels, the first three."""
        names = list(dict.fromkeys(port.module for port in self.writers))
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class Coupling:
    """All groups of a model and where each unit lives. Every label here is a root."""

    groups: tuple[Group, ...]
    places: dict[Place, Labels]
    attributes: tuple[Attribute, ...]
    blended: tuple[tuple[Any, Labels], ...]
    following: dict[str, str]
    writers: tuple[Port, ...]  # in the order the model runs them
    readers: tuple[Port, ...]
    outputs: tuple[Dims, ...]
    left_alone: dict[str, str] = field(default_factory=dict)  # layer -> why none of its channels can go


def couple(book: Book) -> Coupling:
    """The groups that a walked graph leaves: units that some layer makes, some layer reads and nothing pins."""
    pinned = book.reasons()

    def rooted(ports: Iterable[Port]) -> list[Port]:
        return [Port(port.module, book.roots(port.labels), port.place) for port in ports]

    writers, readers = rooted(book.writers), rooted(book.readers)
    norms = [(name, book.roots(labels)) for name, labels in book.norms]
    places = {place: book.roots(labels) for place, labels in book.places.items()}
    read = {label for port in readers for label in port.labels.tolist()}
    touched: dict[int, list[Place]] = {}
    for place, labels in places.items():
        for label in np.unique(labels).tolist():
            touched.setdefault(label, []).append(place)
    made: dict[tuple[Place, ...], dict[int, None]] = {}
    for port in writers:
        for label in port.labels.tolist():
            if label in read and label not in pinned:
                made.setdefault(tuple(touched[label]), {})[label] = None
    groups = []
    for units in made.values():
        own = np.array(list(units), dtype=np.int64)
        groups.append(
            Group(
                own,
                tuple(port for port in writers if np.isin(port.labels, own).any()),
                tuple(port for port in readers if np.isin(port.labels, own).any()),
                tuple(norm for norm in norms if np.isin(norm[1], own).any()),
            )
        )
    free = {label for units in made.values() for label in units}
    alone = {}
    for port in writers:
        labels = port.labels.tolist()
        if not free.intersection(labels):
            alone[port.module] = next((pinned[label] for label in labels if label in pinned), "no layer reads them")
    return Coupling(
        tuple(groups),
        places,
        tuple(Attribute(a.module, a.name, book.roots(a.labels), a.divisor, a.in_tuple) for a in book.attributes),
        tuple((node, book.roots(labels)) for node, labels in book.blended),
        _alone(book.following, writers),
        tuple(writers),
        tuple(readers),
        tuple(tuple(book.roots(labels) for labels in dims) for dims in book.outputs),
        alone,
    )


def _alone(following: dict[str, str], writers: list[Port]) -> dict[str, str]:
    """`following` without layers that run twice and BatchNorms that follow several."""
    runs = [port.module for port in writers]
    norms = list(following.values())
    return {name: norm for name, norm in following.items() if runs.count(name) == 1 and norms.count(norm) == 1}
