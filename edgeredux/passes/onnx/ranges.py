"""The largest magnitude that each float value of a graph reaches on some inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from edgeredux.errors import DataError, one_line
from edgeredux.passes.onnx import files
from edgeredux.seams import Feed


def largest(model: ir.Model, feeds: Sequence[Feed], scratch: Path) -> dict[str, float]:
    """max |x| over the finite elements of every float value of the main graph, by name, inputs included.

    Measured as written, no operator fused. Raises DataError when the feeds do not fit the graph.
    """
    values = [value for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    kept = list(model.graph.outputs)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder, "ranges.onnx")
        try:
            model.graph.outputs[:] = [*kept, *(value for value in values if value not in kept)]
            files.write(model, path)
        finally:
            model.graph.outputs[:] = kept
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            inputs = [item.name for item in session.get_inputs()]
            names = [str(value.name) for value in values]
            for feed in feeds:
                given = {name: feed[name] for name in inputs}
                for name, array in zip(names, session.run(names, given), strict=True):
                    found[name] = max(found.get(name, 0.0), _largest(array))
                for name in inputs:
                    if feed[name].dtype.kind == "f":
                        found[name] = max(found.get(name, 0.0), _largest(feed[name]))
        except Exception as problem:  # ONNX Runtime raises its own kinds
            raise DataError(one_line(f"the calibration feeds do not run: {problem}", 300)) from problem
    return found


def _largest(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> float:
    finite = np.abs(array[np.isfinite(array)])
    return float(finite.max()) if finite.size else 0.0
