"""Weights as small integers in blocks of neighbours that share a scale: the form of ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
    HQQWeightOnlyQuantConfig,
    HQQWeightOnlyQuantizer,
)

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Bits: TypeAlias = Literal[4, 8]


@dataclass(frozen=True)
class Blocks:
    """A weight [outputs, inputs]: w = (code - zero) * scale, one scale a block of `block` inputs of one output.

    `packed` uint8 [outputs, blocks, block * bits / 8], low bits first, inputs padded to whole blocks. `scales` float
    [outputs, blocks]. `zeros` float of the same shape; None: every zero is 2^(bits-1), the symmetric form.
    """

    packed: Array
    scales: Array
    zeros: Array | None
    bits: Bits
    block: int
    inputs: int
    method: str

    def codes(self) -> Array:
        """Unsigned codes [outputs, inputs]."""
        if self.bits == 8:
            flat = self.packed.reshape(len(self.packed), -1)
        else:
            flat = np.stack([self.packed & 15, self.packed >> 4], axis=-1).reshape(len(self.packed), -1)
        return flat[:, : self.inputs]

    def weight(self) -> Array:
        """The weight that these blocks mean, float32 [outputs, inputs]."""
        zeros = np.float32(1 << (self.bits - 1)) if self.zeros is None else self._spread(self.zeros)
        return (self.codes().astype(np.float32) - zeros) * self._spread(self.scales)

    def _spread(self, values: Array) -> Array:
        return np.repeat(values, self.block, axis=1)[:, : self.inputs]


def pack(codes: Array, scales: Array, bits: Bits, block: int, method: str) -> Blocks:
    """Symmetric blocks of signed codes [outputs, inputs], each in [-2^(bits-1), 2^(bits-1))."""
    outputs, inputs = codes.shape
    count = -(-inputs // block)
    middle = 1 << (bits - 1)
    padded = np.full((outputs, count * block), middle, np.uint8)
    padded[:, :inputs] = (codes.astype(np.int16) + middle).astype(np.uint8)
    packed = padded if bits == 8 else padded[:, 0::2] | padded[:, 1::2] << 4
    return Blocks(packed.reshape(outputs, count, -1), scales.astype(np.float32), None, bits, block, inputs, method)


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
