"""What a linear operator costs dense and in bands: a model of a few measured rates, so that a pass can decide alike
on every machine.

Measured on ONNX Runtime 1.32, one and two threads of an AMD Zen 5 (AVX-512, VNNI), kernel times of its profiler;
layers of 768x3072, 3072x768 and 384x384 at 16 to 128 tokens come out within 10 % (two threads: 15 %). Only ratios of
costs decide, and those differ less between CPUs than the rates do: a slower core multiplies slower and copies slower.
More threads divide the multiplications alone: every product then costs a meeting of the threads as well, and what one
of them copies comes from the other's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeredux.passes.onnx.tile_bands import Band, Indices, block, contiguous


@dataclass(frozen=True)
class Rates:
    """Nanoseconds and what one of them does."""

    node_ns: float  # to start any operator
    multiplied: float  # multiplications and additions a ns
    streamed: float  # bytes of weights read a ns, what bounds a single token
    scaled_ns: float  # to bring one output back to float
    item: int  # bytes of an activation where it is gathered
    quantised: float  # activations quantised a ns; 0: none are
    column_ns: float  # to make the scale of one column, in one thread
    divides: float  # of the ideal share of work that another thread takes off
    meeting_ns: float = 4500  # to share work out among threads and wait for them
    far: float = 2.0  # how much longer copies take where several threads made the values
    block_ns: float = 2.0  # to start the copy of one block
    copied: float = 27.0  # bytes a ns of a copy block by block
    row_ns: float = 5.0  # to start the copy of one long row
    moved: float = 50.0  # bytes a ns of a copy row by row


FEW_TOKENS = 8  # up to here int8_columns.py saves more than the sweep over the outputs costs

FLOAT = Rates(node_ns=1500, multiplied=225, streamed=35, scaled_ns=0, item=4, quantised=0, column_ns=0, divides=1.0)
INT8 = Rates(
    node_ns=1500, multiplied=1000, streamed=50, scaled_ns=0.12, item=1, quantised=11, column_ns=1.45, divides=0.89
)


def product(rates: Rates, tokens: int, inputs: int, outputs: int, threads: int) -> float:
    """Nanoseconds of [tokens, inputs] by [inputs, outputs]."""
    bytes_of_weights = inputs * outputs * rates.item
    work = max(2.0 * tokens * inputs * outputs / rates.multiplied, bytes_of_weights / rates.streamed)
    work += tokens * outputs * rates.scaled_ns
    alone = rates.node_ns + (outputs * rates.column_ns if tokens > FEW_TOKENS else 0.0)
    if threads == 1:
        return alone + work
    return alone + rates.meeting_ns + work / (1 + (threads - 1) * rates.divides)


def reading(rates: Rates, tokens: int, columns: Indices, inputs: int, threads: int, *, planes: bool) -> float:
    """Nanoseconds to get these of the inputs: nothing, a slice, or a gather.

    `planes`: an input is a whole plane of positions (convolutions), so one copy takes it at all positions.
    """
    if len(columns) == inputs:
        return 0.0
    size = tokens * len(columns) * rates.item
    rows = 1 if planes else tokens
    far = rates.far if threads > 1 else 1.0
    if contiguous(columns):
        return rates.node_ns + far * (rows * rates.row_ns + size / rates.moved)
    width = 1 if planes else block(columns, inputs)
    return rates.node_ns * 2 + far * (rows * len(columns) / width * rates.block_ns + size / rates.copied)


def quantising(rates: Rates, tokens: int, inputs: int) -> float:
    """Nanoseconds to quantise the activation."""
    return rates.node_ns + tokens * inputs / rates.quantised if rates.quantised else 0.0


def dense(rates: Rates, tokens: int, inputs: int, outputs: int, threads: int) -> float:
    """Nanoseconds of the layer as one product."""
    return quantising(rates, tokens, inputs) + product(rates, tokens, inputs, outputs, threads)


def banded(
    rates: Rates, tokens: int, bands: Sequence[Band], inputs: int, threads: int, *, planes: bool = False
) -> float:
    """Nanoseconds of the layer band by band: one quantisation, reads shared by equal bands, the outputs joined."""
    total = quantising(rates, tokens, inputs)
    read: set[bytes] = set()
    for band in bands:
        key = band.columns.tobytes()
        if key not in read:
            read.add(key)
            total += reading(rates, tokens, band.columns, inputs, threads, planes=planes)
        total += product(rates, tokens, len(band.columns), band.outputs, threads)
    if len(bands) > 1:
        size = tokens * bands[-1].stop * 4  # products of int8 are float again
        total += rates.node_ns + (1 if planes else tokens) * len(bands) * rates.row_ns + size / rates.moved
    return total
