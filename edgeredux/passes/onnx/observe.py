"""Values inside of a graph, as they are on some feeds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import onnxruntime

from edgeredux.errors import DataError, one_line
from edgeredux.parity import token_mask
from edgeredux.passes.onnx import files
from edgeredux.seams import Feed

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


def observe(
    model: ir.Model, values: Sequence[ir.Value], feeds: Sequence[Feed], scratch: Path, see: Callable[[str, Array], None]
) -> None:
    """Call `see` with the name and the array of each of these values of the main graph, feed by feed.

    Positions where a feed's "attention_mask" is 0 are padding: an array [batch, sequence, width] comes without them, as
    [positions, width]. Everything is computed as written, no operator fused. Raises DataError when the feeds do not fit
    the graph.
    """
    kept = list(model.graph.outputs)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder, "observed.onnx")
        try:
            model.graph.outputs[:] = [*kept, *(value for value in values if value not in kept)]
            files.write(model, path)
        finally:
            model.graph.outputs[:] = kept
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        names = [str(value.name) for value in values]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            inputs = [item.name for item in session.get_inputs()]
        except Exception as problem:  # ONNX Runtime raises its own kinds
            raise _unfit(problem) from problem
        for feed in feeds:
            try:
                arrays = session.run(names, {name: feed[name] for name in inputs})
            except Exception as problem:  # as above, and KeyError where an input is not fed
                raise _unfit(problem) from problem
            for name, array in zip(names, arrays, strict=True):
                see(name, _real(array, token_mask(feed)))


def _unfit(problem: Exception) -> DataError:
    return DataError(one_line(f"the calibration feeds do not run: {problem}", 300))


def _real(array: Array, mask: Array | None) -> Array:
    if mask is not None and array.ndim == 3 and mask.shape == array.shape[:2]:
        array = array[mask != 0]
    return array
