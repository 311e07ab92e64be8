"""Weights rounded to blocks without any data: to the nearest code, or with a zero that is solved for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
    HQQWeightOnlyQuantConfig,
    HQQWeightOnlyQuantizer,
)

from edgeredux.passes.onnx.blocks import Array, Bits, Blocks, pack


def rtn(weight: Array, bits: Bits, block: int) -> Blocks:
    """Each weight rounded to the nearest code, by ONNX Runtime's kernel.

    The scale is the entry of largest magnitude of the block over -2^(bits-1), so the largest one is exact and zero is.
    """
    quantiser = DefaultWeightOnlyQuantizer(
        DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, bits=int(bits))
    )
    packed, scales, _ = quantiser.qbits_block_quant(np.ascontiguousarray(weight.T, dtype=np.float32))
    return Blocks(packed, scales.reshape(len(packed), -1), None, bits, block, weight.shape[1], "rtn")


def hqq(weight: Array, bits: Bits, block: int) -> Blocks:
    """Half-quadratic quantisation (Badri & Shaji 2023), by ONNX Runtime's solver: the zero of each block, a real
    number, is moved to where the p-norm of the error is least (p = 0.7). Such a zero cannot hold zeros exactly.
    """
    quantiser = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=block, bits=int(bits)))
    table = torch.from_numpy(np.ascontiguousarray(weight, dtype=np.float32))
    codes, scales, zeros = quantiser.quantize_internal(table, bits=int(bits), group_size=block)
    middle = 1 << (bits - 1)
    found = pack(codes.numpy().astype(np.int16)[:, : weight.shape[1]] - middle, scales.numpy(), bits, block, "hqq")
    return replace(found, zeros=zeros.numpy().astype(np.float32))
