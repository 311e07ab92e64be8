"""Weights of 8 bits for ONNX Runtime: a byte a weight in the file, arithmetic in float or int8."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.passes.onnx.block_step import BlockStep, Method
from edgeredux.seams import PassContext, Tolerance


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Int8Weights:
    """Weights of MatMul, Gemm and embedding tables as symmetric int8 in blocks; activations stay float.

    Given   y = MatMul(x, w); e = Gather(t, ids)
    Result  y = com.microsoft.MatMulNBits(x, wq, ws); e = com.microsoft.GatherBlockQuantized(tq, ids, ts)

    For models whose activations int8_dynamic spoils: outputs are all but those of the float model, at some 1.1 bytes a
    weight. Options as of int4_weights. Runs on ONNX Runtime only. Zeros stay zeros (checked, counted in `zeros`).
    """

    method: Method = "rtn"
    block: Literal[16, 32, 64, 128, 256] = 32
    embeddings: Literal["same", "float"] = "same"
    head: Literal["same", "float"] = "same"
    compute: Literal["float", "int8"] = "float"
    least: int = Field(default=1024, ge=0)
    exclude: tuple[str, ...] = ()
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance(
            "int8 steps are 1/128 of a block's largest weight, and weights alone are rounded", cosine=0.99
        ),
        init=False,
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The rewritten graph; details `layers` (bits, method), `tables` (bits), `tied`, `left` (why), `zeros`.

        Raises ArtifactError on an unreadable file, DataError where gptq has no fitting calibration inputs.
        """
        return BlockStep(
            "int8_weights",
            8,
            self.method,
            self.block,
            self.embeddings,
            self.head,
            self.compute,
            self.least,
            self.exclude,
        ).run(source, out, context)
