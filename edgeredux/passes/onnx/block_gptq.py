"""GPTQ in blocks, with the weights that are zero held at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeredux.errors import DataError
from edgeredux.passes.onnx.blocks import Array, Bits, Blocks, pack
from edgeredux.passes.onnx.observe import observe
from edgeredux.seams import Feed

_LAZY = 128  # inputs quantised before the rest of the weight is updated, as in the paper
_HESSIAN_BYTES = 1 << 30  # of second moments held at one time; the feeds run once for each portion


def gptq(weight: Array, moments: Array, bits: Bits, block: int, damping: float = 0.01) -> Blocks:
    """GPTQ (Frantar et al. 2023, arXiv 2210.17323, algorithm 1): input by input, the error of rounding one is spread
    over those not yet rounded, by the inverse of H = 2 X^T X.

    `weight` [outputs, inputs]; `moments` X^T X [inputs, inputs]. Weights that are zero stay zero: such a one is rounded
    to zero and the error of that spread as any other, which is SparseGPT's joint form (arXiv 2301.00774, section 3.5)
    with the mask given. ONNX Runtime's own GPTQ moves them and then keeps what they became. The scale of a block is
    that of `rtn`, taken from the weights as updated when the block begins. `damping`: share of the mean of H's
    diagonal added to it.
    """
    table = weight.astype(np.float64).copy()
    held = weight == 0
    outputs, inputs = table.shape
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    factor = _inverse_factor(moments, damping)
    codes = np.zeros((outputs, inputs), np.int16)
    scales = np.zeros((outputs, -(-inputs // block)), np.float32)
    step = max(_LAZY, block)
    for first in range(0, inputs, step):
        last = min(first + step, inputs)
        errors = np.zeros((outputs, last - first))
        for index in range(first, last):
            if index % block == 0:
                scales[:, index // block] = _scale(table[:, index : index + block], held[:, index : index + block], low)
            scale = scales[:, index // block].astype(np.float64)
            divided = np.divide(table[:, index], scale, out=np.zeros(outputs), where=scale != 0)
            code = np.clip(np.rint(divided), low, high)
            code[held[:, index]] = 0
            codes[:, index] = code
            error = (table[:, index] - code * scale) / factor[index, index]
            table[:, index + 1 : last] -= np.outer(error, factor[index, index + 1 : last])
            errors[:, index - first] = error
        table[:, last:] -= errors @ factor[first:last, last:]
    return pack(codes, scales, bits, block, "gptq")


def _scale(part: Array, held: Array, low: int) -> Array:
    part = np.where(held, 0.0, part)
    largest = np.take_along_axis(part, np.abs(part).argmax(axis=1)[:, None], axis=1)[:, 0]
    return (largest / low).astype(np.float32)


def _inverse_factor(moments: Array, damping: float) -> Array:
    """Upper triangular U with U^T U = H^-1, as the algorithm reads it: row i holds what input i gives to later ones."""
    hessian = 2.0 * moments.astype(np.float64)
    diagonal = np.diagonal(hessian).copy()
    silent = diagonal == 0
    hessian[silent, silent] = 1.0  # an input that never was anything: round it to the nearest
    hessian[np.diag_indices_from(hessian)] += damping * float(diagonal.mean()) if diagonal.any() else 1.0
    factor: Array = np.linalg.cholesky(np.linalg.inv(hessian)).T
    return factor


def moments(model: ir.Model, widths: Mapping[ir.Value, int], feeds: Sequence[Feed], scratch: Path) -> dict[str, Array]:
    """X^T X [width, width] of each of these values of the main graph over all positions of all feeds, by name.

    `widths`: the size of each one's last axis, which says how many are held at a time.
    Positions where a feed's "attention_mask" is 0 are left out of values [batch, sequence, width]. Raises DataError
    when there are no feeds, or when they do not fit the graph.
    """
    if not feeds:
        raise DataError("method gptq needs calibration feeds, and there are none")
    found: dict[str, Array] = {}

    def see(name: str, array: Array) -> None:
        rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
        found[name] = found.get(name, 0.0) + rows.T @ rows

    for portion in _portions(widths):
        observe(model, portion, feeds, scratch, see)
    return found


def _portions(widths: Mapping[ir.Value, int]) -> list[list[ir.Value]]:
    portions: list[list[ir.Value]] = []
    room = 0
    for value, width in widths.items():
        size = width * width * 8
        if size > room or not portions:
            portions.append([])
            room = _HESSIAN_BYTES
        portions[-1].append(value)
        room -= size
    return portions
