"""Weights of 4 bits for ONNX Runtime: half a byte a weight in the file, arithmetic in float or int8."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.passes.onnx.block_step import BlockStep
from edgeredux.passes.onnx.blocks import Bits
from edgeredux.seams import Tolerance


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Int4Weights(BlockStep):
    """Weights of MatMul, Gemm and embedding tables as symmetric int4 in blocks; activations stay float.

    Given   y = MatMul(x, w); e = Gather(t, ids)
    Result  y = com.microsoft.MatMulNBits(x, wq, ws); e = com.microsoft.GatherBlockQuantized(tq, ids, ts)

    `method`: rtn (round to the nearest), hqq (half-quadratic, needs no data, declines where weights have zeros, which
    its zero points cannot hold), gptq (on the calibration inputs, zeros held). `block`: inputs that share one scale.
    `embeddings`: tables the same, at int8 or float. `head`: the same choice for layers whose output is the model's. A
    table that a layer reads too (tied) is stored once, at the wider of the two. `compute`: int8 quantises
    activations while running, faster and less exact. `least`: smaller weights stay float. `exclude`: names of nodes.
    Runs on ONNX Runtime only. Smaller, not faster: a CPU unpacks the weights each time. Zeros stay zeros (checked,
    counted in `zeros`).
    """

    name: ClassVar[str] = "int4_weights"
    bits: ClassVar[Bits] = 4

    tolerance: Tolerance = dataclasses.field(
        default=Tolerance(
            "int4 steps are an eighth of a block's largest weight; this catches breakage, the budget judges quality",
            cosine=0.8,
        ),
        init=False,
    )
