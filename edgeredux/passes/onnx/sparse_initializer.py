"""ONNX's own sparse tensors, where they are smaller than the dense ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.passes.onnx import files
from edgeredux.seams import PassContext, Tolerance

_INDEX_BYTES = 8  # ONNX's indices are int64
_LEAST_IR = 5  # the version that brought sparse initializers


def break_even(item_bytes: int) -> float:
    """The share of zeros above which values and indices take fewer bytes than the dense tensor: 8 / (item + 8).

    0.667 for float32, 0.8 for float16, 0.889 for int8.
    """
    return _INDEX_BYTES / (item_bytes + _INDEX_BYTES)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SparseInitializer:
    """Weights with zeros beyond the break-even stored as values and indices, in standard ONNX. Exact.

    Given   w dense, 90 % zeros
    Result  w = sparse_initializer(values [nnz], indices [nnz])

    Only the file shrinks: ONNX Runtime makes the tensor dense when it loads it. An index takes 8 bytes, so this pays
    above 66.7 % zeros in float32, 80 % in float16, 88.9 % in int8; below, a weight stays and the pass declines with
    these numbers. `edgeredux pack` is smaller at any share of zeros. The last pass of a list: no other reads its file.
    `least`: weights of fewer elements stay.
    """

    least: int = Field(default=1024, ge=0)
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("the same numbers stored in another way", atol=0.0, rtol=0.0), init=False
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The file with sparse weights; details `weights` (zeros, break-even, bytes before and after), `left` (zeros,
        break-even). Raises ArtifactError on an unreadable file.
        """
        tensors = _tensors(files.read(source))
        model = onnx.load(str(source), load_external_data=False)
        if model.ir_version < _LEAST_IR:
            return Change("sparse_initializer", False, f"declined: IR version {model.ir_version} has none, 5 is needed")
        taken: dict[str, Any] = {}
        left: dict[str, Any] = {}
        dense = {item.name for item in model.graph.input}
        kept: list[Any] = []
        for tensor in model.graph.initializer:
            held = tensors[tensor.name]
            array = held.numpy()
            if array.size < self.least or array.dtype.kind not in "fiu" or array.itemsize > 8 or tensor.name in dense:
                kept.append(tensor)
                continue
            places = np.flatnonzero(_bits(array))
            said = {
                "zeros": round(1 - len(places) / array.size, 4),
                "break_even": round(break_even(array.itemsize), 4),
                "bytes_before": array.nbytes,
                "bytes_after": len(places) * (array.itemsize + _INDEX_BYTES),
            }
            if said["bytes_after"] >= said["bytes_before"]:
                left[tensor.name] = {name: said[name] for name in ("zeros", "break_even")}
                kept.append(tensor)
                continue
            taken[tensor.name] = said
            values = onnx.numpy_helper.from_array(array.reshape(-1)[places], tensor.name)
            indices = onnx.numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}_indices")
            model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, list(array.shape)))
            del array, places, values, indices
            if isinstance(held, ir.ExternalTensor):
                held.release()
        if not taken:
            return Change("sparse_initializer", False, f"declined: {_nearest(left, self.least)}", {"left": left})
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        if (size := model.ByteSize()) > files.SINGLE_FILE_BYTES:
            why = f"declined: {size} bytes remain in the graph, and sparse tensors cannot lie outside of it"
            return Change("sparse_initializer", False, why, {"left": left})
        apart = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
        if apart:
            _write_apart(apart, tensors, out.with_name(out.name + ".data"))
        with out.open("wb") as file:
            file.write(model.SerializeToString())
        before, after = (sum(item[f"bytes_{when}"] for item in taken.values()) for when in ("before", "after"))
        why = f"{len(taken)} weights of {before} bytes are sparse now, {after} bytes; {len(left)} stay dense"
        return Change("sparse_initializer", True, why, {"weights": taken, "left": left})


def _tensors(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    found = model.graph.initializers.values()
    return {str(value.name): value.const_value for value in found if value.const_value is not None}


def _write_apart(apart: Sequence[Any], tensors: Mapping[str, ir.TensorProtocol], data: Path) -> None:
    """Weights that came beside the graph and stay dense lie beside it again."""
    with data.open("wb") as file:
        for tensor in apart:
            start = file.tell()
            file.write(tensors[tensor.name].tobytes())
            where = {"location": data.name, "offset": start, "length": file.tell() - start}
            del tensor.external_data[:]
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))


def _bits(array: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """The numbers as bit patterns: -0.0 is none of the zeros, or it would come back as 0.0."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.itemsize}")


def _nearest(left: dict[str, Any], least: int) -> str:
    if not left:
        return f"no weight has {least} elements"
    name, said = max(left.items(), key=lambda item: item[1]["zeros"] - item[1]["break_even"])
    return (
        f"no weight is beyond its break-even; the nearest, {name}, has {said['zeros']:.1%} zeros of "
        f"{said['break_even']:.1%} (66.7% in float32, 80% in float16, 88.9% in int8)"
    )
