"""State that goes out of a graph and in again at the next call: a decoder's key-value cache."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeredux.passes.onnx.structure.state import Carried, State

# Names of Optimum, and so of most runtimes: past_key_values.0.key comes in, present.0.key goes out.
_IN, _OUT = "past_key_values", "present"

Narrowed = dict[str, dict[str, list[int]]]


def carried(graph: ir.Graph) -> list[Carried]:
    """Pairs of cache input and cache output, by name, of equal rank and equal static sizes."""
    outputs = {value.name: value for value in graph.outputs}
    found = []
    for value in graph.inputs:
        out = outputs.get(str(value.name).replace(_IN, _OUT)) if _IN in str(value.name) else None
        if out is not None and value.shape is not None and out.shape is not None:
            sizes = [[dim if isinstance(dim, int) else None for dim in one.shape or ()] for one in (value, out)]
            if sizes[0] == sizes[1] and out.dtype == value.dtype:
                found.append((value, out))
    return found


def narrowed(state: State, before: Mapping[str, Mapping[str, list[int]]]) -> Narrowed:
    """By input or output, by axis: the positions that stay, numbered as in the file that was read.

    `before`: what earlier rounds left.
    """
    found: Narrowed = {name: dict(axes) for name, axes in before.items()}
    for pair in state.carried:
        for value in pair:
            for axis in range(len(state.dims(value))):
                cut = state.cut(value, axis)
                if cut is not None and cut.gone.any():
                    axes = found.setdefault(str(value.name), {})
                    held = np.array(axes.get(str(axis), range(len(cut.gone))))
                    axes[str(axis)] = [int(place) for place in held[cut.kept]]
    return found
