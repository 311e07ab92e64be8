"""Weights of 8 bits for ONNX Runtime: a byte a weight in the file, arithmetic in float or int8."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.passes.onnx.block_step import BlockStep
from edgeredux.passes.onnx.blocks import Bits
from edgeredux.seams import Tolerance


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Int8Weights(BlockStep):
    """Weights of MatMul, Gemm and embedding tables as symmetric int8 in blocks; activations stay float.

    Given   y = MatMul(x, w); e = Gather(t, ids)
    Result  y = com.microsoft.MatMulNBits(x, wq, ws); e = com.microsoft.GatherBlockQuantized(tq, ids, ts)

    For models whose activations int8_dynamic spoils: outputs are all but those of the float model, at some 1.1 bytes a
    weight. Options as of int4_weights. Runs on ONNX Runtime only. Zeros stay zeros (checked, counted in `zeros`).
    """

    name: ClassVar[str] = "int8_weights"
    bits: ClassVar[Bits] = 8

    embeddings: Literal["same", "float"] = "same"
    head: Literal["same", "float"] = "same"
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance(
            "int8 steps are 1/128 of a block's largest weight, and weights alone are rounded", cosine=0.99
        ),
        init=False,
    )
