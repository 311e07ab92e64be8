"""Weights of 4 bits for ONNX Runtime: half a byte a weight in the file, arithmetic in float or int8."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.passes.onnx.block_step import BlockStep, Method
from edgeredux.passes.onnx.block_weights import Width
from edgeredux.seams import PassContext, Tolerance


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Int4Weights:
    """Weights of MatMul, Gemm and embedding tables as symmetric int4 in blocks; activations stay float.

    Given   y = MatMul(x, w); e = Gather(t, ids)
    Result  y = com.microsoft.MatMulNBits(x, wq, ws); e = com.microsoft.GatherBlockQuantized(tq, ids, ts)

    `method`: rtn (round to the nearest), hqq (half-quadratic, needs no data, declines where weights have zeros, which
    its zero points cannot hold), gptq (on the calibration inputs, zeros held). `block`: inputs that share one scale.
    `embeddings`: tables the same, at int8 or float. `head`: the same choice for layers whose output is the model's. A
    table that the output layer reads too (tied) is stored once, at the wider of the two. `compute`: int8 quantises
    activations while running, faster and less exact. `least`: smaller weights stay float. `exclude`: names of nodes.
    Runs on ONNX Runtime only. Smaller, not faster: a CPU unpacks the weights each time. Zeros stay zeros (checked,
    counted in `zeros`).
    """

    method: Method = "rtn"
    block: Literal[16, 32, 64, 128, 256] = 32
    embeddings: Width = "same"
    head: Width = "same"
    compute: Literal["float", "int8"] = "float"
    least: int = Field(default=1024, ge=0)
    exclude: tuple[str, ...] = ()
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance(
            "int4 steps are an eighth of a block's largest weight; this catches breakage, the budget judges quality",
            cosine=0.8,
        ),
        init=False,
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The rewritten graph; details `layers` (bits, method), `tables` (bits), `tied`, `left` (why), `zeros`.

        Raises ArtifactError on an unreadable file, DataError where gptq has no fitting calibration inputs.
        """
        return BlockStep(
            "int4_weights",
            4,
            self.method,
            self.block,
            self.embeddings,
            self.head,
            self.compute,
            self.least,
            self.exclude,
        ).run(source, out, context)
