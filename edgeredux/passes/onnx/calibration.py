"""Calibration feeds as a graph and as ONNX Runtime's quantisers take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

from edgeredux.errors import DataError
from edgeredux.seams import Feed

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


# ONNX Runtime's quantize_static gives its entropy search as many bins as it has levels: one candidate, the whole range.
_BINS = 1024


class FeedReader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the feeds to ONNX Runtime one by one."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def write_ranges(
    source: Path, feeds: Sequence[Feed], method: str, percentile: float, operators: Sequence[str], out: Path
) -> None:
    """The range of every value that these operators touch, as the calibration cache that quantize_static reads.

    minmax: lowest and highest seen; entropy: the range around zero whose histogram loses least to 128 levels
    (Kullback-Leibler, as TensorRT does); percentile: `percentile` % of all values, half of the rest cut on each side.
    """
    options = {"percentile": percentile, "symmetric": False} if method == "percentile" else {}
    options |= {"num_bins": _BINS} if method == "entropy" else {}
    calibrator = create_calibrator(
        source,
        operators,
        augmented_model_path=str(out.with_name("augmented.onnx")),
        calibrate_method=METHODS[method],
        use_external_data_format=source.with_name(source.name + ".data").exists(),
        extra_options=options,
    )
    calibrator.collect_data(FeedReader(feeds))
    save_tensors_data(calibrator.compute_data(), out)


def fitting(model: ir.Model, calibration: Sequence[Feed], what: str) -> list[Feed]:
    """The calibration feeds as this graph takes them: its inputs, in its types; fixed axes must be of their size.

    Raises DataError where there are no feeds, or one lacks an input or has another shape.
    """
    if not calibration:
        raise DataError(f"pass {what}: there are no calibration feeds")
    found = []
    for feed in calibration:
        row: dict[str, np.ndarray[Any, Any]] = {}
        for value in model.graph.inputs:
            name = str(value.name)
            if value.is_initializer() and name not in feed:
                continue  # it has a value
            if name not in feed:
                raise DataError(f"pass {what}: the calibration feeds have no input {name!r}: {sorted(feed)}")
            array = feed[name]
            if value.shape is not None and not _fits(array.shape, value.shape):
                shape = value.shape.numpy() if value.shape.is_static() else value.shape
                raise DataError(f"pass {what}: calibration input {name} is {array.shape}, the graph wants {shape}")
            row[name] = array if value.dtype is None else array.astype(value.dtype.numpy())
        found.append(row)
    return found


def _fits(found: tuple[int, ...], wanted: ir.Shape) -> bool:
    if len(found) != len(wanted):
        return False
    return all(not isinstance(want, int) or want == size for size, want in zip(found, wanted, strict=True))
