"""Weights as small integers in blocks of neighbours that share a scale: the form of ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Bits: TypeAlias = Literal[4, 8]

_LEAST = 256 * float(np.finfo(np.float32).tiny)  # 2^8 steps of the least normal number


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
        return unpack(self.packed, self.bits, self.inputs)

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


def unpack(packed: Array, bits: Bits, inputs: int) -> Array:
    """Unsigned codes [outputs, inputs] of `packed` [outputs, blocks, block * bits / 8]."""
    flat = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1)
    return flat.reshape(len(packed), -1)[:, :inputs]


def vanishing(weight: Array, block: int) -> bool:
    """Whether a block's largest magnitude is so small, and not zero, that its scale is no normal float32 number.

    The reciprocal of such a scale is infinite, and zero times that is no number.
    """
    starts = np.arange(0, weight.shape[1], block)
    largest = np.maximum.reduceat(np.abs(weight), starts, axis=1)
    return bool(((largest > 0) & (largest < _LEAST)).any())
