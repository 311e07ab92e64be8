"""Inputs and outputs that a pass made narrower: the same data for the file before it and the file after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeredux.seams import Feed

# By name of an input or output, by axis (as text, as JSON has it): the positions that stay.
Interface = Mapping[str, Mapping[str, Sequence[int]]]


def narrow(feeds: Sequence[Feed], interface: Interface) -> list[Feed]:
    """The arrays with only those positions; arrays that are not named stay as they are."""
    import numpy as np

    found = []
    for feed in feeds:
        made = dict(feed)
        for name, axes in interface.items():
            for axis, places in axes.items() if name in made else ():
                made[name] = np.take(made[name], places, int(axis))
        found.append(made)
    return found
