"""Dynamic int8 for ONNX Runtime on CPUs: int8 weights in the file, activations quantised while running."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxruntime.quantization import QuantType, quantize_dynamic
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.errors import InternalError, one_line
from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.int8_rows import Int8Rows
from edgeredux.passes.onnx.int8_shared import ShareQuantisation
from edgeredux.seams import PassContext, Tolerance


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Int8Dynamic:
    """MatMul, Gemm and embedding weights as symmetric int8; a quarter of the bytes, integer arithmetic in MatMul.

    Given   y = MatMul(x, w)
    Result  xq, xs, xz = DynamicQuantizeLinear(x); y = Cast(MatMulInteger(xq, wq, xz, 0)) * (xs * ws)

    By ONNX Runtime's quantize_dynamic; embedding tables by `Int8Rows`, one scale a row. Products that read parts of one
    activation (pass tile) share its quantisation (`ShareQuantisation`). Weights that are zero stay
    zero (checked, an error otherwise). `per_channel`: one scale an output column. `embeddings`: tables too.
    `reduce_range`: 7-bit weights. x86 without VNNI (before Cascade Lake, Zen 4) adds pairs of u8 x s8 products in 16
    bits and saturates: with full range 255 * 127 * 2 overflows. Arm and VNNI do not, and keep the eighth bit.
    `exclude`: names of nodes left in float. Convolutions stay float: ConvInteger is slower than float there.
    """

    per_channel: bool = True
    embeddings: bool = True
    reduce_range: bool = False
    exclude: tuple[str, ...] = ()
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance(
            "int8 steps are some 1 % of the largest value; this catches breakage, the budget judges quality", cosine=0.9
        ),
        init=False,
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The quantised graph; details count `matmuls`, `tables`, `zeros_kept`, `shared`. Raises ArtifactError."""
        model = files.read(source)
        common.NameFixPass()(model)  # the quantiser makes names from node names, and nodes may have none
        before = _weights(model)
        tables = Int8Rows()
        if self.embeddings:
            tables(model)
        unknown = set(self.exclude) - {node.name for node in model.graph.all_nodes()}
        if unknown:
            return Change("int8_dynamic", False, f"declined: exclude names {min(unknown)!r}, which is no node")
        try:
            with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
                given, made = Path(folder, "in.onnx"), Path(folder, "out.onnx")
                files.write(model, given)
                quantize_dynamic(
                    given,
                    made,
                    op_types_to_quantize=["MatMul", "Gemm"],
                    per_channel=self.per_channel,
                    reduce_range=self.reduce_range,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=list(self.exclude),
                    use_external_data_format=given.with_name("in.onnx.data").exists(),
                    extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True, "EnableSubgraph": True},
                )
                quantised = files.read(made)
                matmuls = sum(node.op_type == "MatMulInteger" for node in quantised.graph.all_nodes())
                kept = _zeros_kept(before, quantised)
                sharing = ShareQuantisation()
                sharing(quantised)
                if matmuls or tables.tables:
                    files.write(quantised, out)
        except (ValueError, RuntimeError, NotImplementedError, KeyError) as problem:
            return Change("int8_dynamic", False, one_line(f"declined: ONNX Runtime cannot quantise it: {problem}", 300))
        if not matmuls and not tables.tables:
            return Change("int8_dynamic", False, "declined: no MatMul, Gemm or embedding has constant float weights")
        details = {"matmuls": matmuls, "tables": len(tables.tables), "zeros_kept": kept, "shared": sharing.shared}
        return Change("int8_dynamic", True, f"{matmuls} MatMuls and {len(tables.tables)} tables to int8", details)


def _weights(model: ir.Model) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    found = {}
    for graph in files.graphs(model):
        for value in graph.initializers.values():
            array = files.constant(value)
            if array is not None and array.dtype == np.float32 and array.ndim == 2:
                found[str(value.name)] = array
    return found


def _zeros_kept(before: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]], model: ir.Model) -> int:
    """How many zeros of float weights are zeros of the int8 ones. Raises InternalError when one is not."""
    kept = 0
    for name, array in _int8(model).items():
        stem = name.removesuffix("_quantized").removesuffix("_row_int8")
        if stem in before and before[stem].shape == array.shape:
            zeros = before[stem] == 0
            if array[zeros].any():
                raise InternalError(f"int8_dynamic: zeros of weight {stem!r} did not stay zeros")
            kept += int(zeros.sum())
    return kept


def _int8(model: ir.Model) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    arrays = {str(v.name): files.constant(v) for graph in files.graphs(model) for v in graph.initializers.values()}
    return {name: array for name, array in arrays.items() if array is not None and array.dtype == np.int8}
