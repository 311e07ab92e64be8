"""Dynamic int8 for ONNX Runtime on CPUs: int8 weights in the file, activations quantised while running."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import onnx_ir.passes.common as common
from onnxruntime.quantization import QuantType, quantize_dynamic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.passes.onnx import files, portions, tile_cost, unfit, zeros
from edgeredux.passes.onnx.int8_columns import ScaleColumnsLast
from edgeredux.passes.onnx.int8_rows import Int8Rows
from edgeredux.passes.onnx.int8_shared import ShareQuantisation
from edgeredux.passes.onnx.refusal import Refused, declining, refusing
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
    `tokens`: positions that a run computes; where they are few, column scales are written so that ONNX Runtime is
    faster with them (`ScaleColumnsLast`).
    """

    per_channel: bool = True
    embeddings: bool = True
    reduce_range: bool = False
    exclude: tuple[str, ...] = ()
    tokens: int = Field(default=32, ge=1, le=1_000_000)
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance(
            "int8 steps are some 1 % of the largest value; this catches breakage, the budget judges quality", cosine=0.9
        ),
        init=False,
    )

    @declining("int8_dynamic")
    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The quantised graph; details count `matmuls`, `tables`, `zeros`, `shared`, `scaled_last`.

        Raises ArtifactError.
        """
        model = files.read(source)
        common.NameFixPass()(model)  # the quantiser makes names from node names, and nodes may have none
        before = zeros.places(model)
        files.release(model)
        tables = Int8Rows()
        if self.embeddings:
            tables(model)
        if (problem := unfit.unknown_node(model, self.exclude)) is not None:
            raise Refused(problem)
        with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
            with refusing("ONNX Runtime cannot quantise it"):
                quantised = portions.in_portions(model, Path(folder), self._quantise, portions.PORTION_BYTES)
            common.TopologicalSortPass()(quantised)  # the quantiser does not see what a branch reads
            matmuls = sum(node.op_type == "MatMulInteger" for node in quantised.graph.all_nodes())
            kept = zeros.check(before, quantised, "int8_dynamic")
            sharing = ShareQuantisation()
            sharing(quantised)
            scaling = ScaleColumnsLast()
            if self.tokens <= tile_cost.FEW_TOKENS:
                common.ShapeInferencePass()(quantised)
                scaling(quantised)
            if not matmuls and not tables.tables:
                raise Refused("no MatMul, Gemm or embedding has constant float weights")
            files.write(quantised, out)
        details = {"matmuls": matmuls, "tables": len(tables.tables), "zeros": kept, "shared": sharing.shared}
        details["scaled_last"] = scaling.scaled
        return Change("int8_dynamic", True, f"{matmuls} MatMuls and {len(tables.tables)} tables to int8", details)

    def _quantise(self, source: Path, out: Path) -> None:
        quantize_dynamic(
            source,
            out,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=self.per_channel,
            reduce_range=self.reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(self.exclude),
            use_external_data_format=source.with_name(source.name + ".data").exists(),
            extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True, "EnableSubgraph": True},
        )
