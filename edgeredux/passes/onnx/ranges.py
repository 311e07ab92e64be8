"""The largest magnitude that each float value of a graph reaches on some inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.observe import Array, observe
from edgeredux.seams import Feed


def largest(model: ir.Model, feeds: Sequence[Feed], scratch: Path) -> dict[str, float]:
    """max |x| over the finite elements of every float value of the main graph, by name, inputs included.

    A value without any finite element is not named. Padding is left out (observe.py). Raises DataError when the feeds
    do not fit the graph.
    """
    values = [value for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    found: dict[str, float] = {}

    def see(name: str, array: Array) -> None:
        finite = np.abs(array[np.isfinite(array)])
        if finite.size:
            found[name] = max(found.get(name, 0.0), float(finite.max()))

    observe(model, values, feeds, scratch, see)
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.FLOAT and not value.is_initializer():  # those have a value that nobody feeds
            for feed in feeds:
                see(str(value.name), feed[str(value.name)])
    return found
