"""A matrix of weights as TFLite's SparsityParameters: rows of blocks, only the blocks that hold something.

Rows are dense; of each row the blocks of 1 x `block` columns that are not all zero are kept, with their numbers
(compressed sparse row); a block is dense. Indices take the narrowest integers that the schema has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Encoded:
    """The kept values, row by row, and where they belong."""

    block: int
    shape: tuple[int, ...]
    values: Array  # of the weight's dtype, kept blocks in order
    segments: Array  # int64 [rows + 1]: the first block of each row
    indices: Array  # int64: the kept blocks' numbers within their rows

    @property
    def kept(self) -> int:
        """Numbers stored, zeros within kept blocks among them."""
        return int(self.values.size)

    @property
    def size_bytes(self) -> int:
        """Bytes of the values and of their places in the file."""
        return int(
            self.values.nbytes + sum(v.size * np.dtype(_narrowest(v)).itemsize for v in (self.segments, self.indices))
        )

    @property
    def fullest_row(self) -> int:
        """Blocks kept in the row that keeps most."""
        return int(np.diff(self.segments).max(initial=0))


def encode(weight: Array, block: int) -> Encoded:
    """`weight`, of rank 2 or more, encoded along its last axis, all others together being the rows.

    The last axis must be a multiple of `block`. Exact: `expand` gives the same numbers back.
    """
    columns = weight.shape[-1]
    if block < 1 or columns % block:
        raise ValueError(f"{columns} columns are no whole number of blocks of {block}")
    blocks = weight.reshape(-1, columns // block, block)
    kept = (blocks != 0).any(axis=-1)
    segments = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64)
    return Encoded(block, weight.shape, blocks[kept].reshape(-1), segments, np.nonzero(kept)[1].astype(np.int64))


def expand(encoded: Encoded) -> Array:
    """The dense weight."""
    rows, columns = encoded.segments.size - 1, encoded.shape[-1]
    dense = np.zeros((rows, columns // encoded.block, encoded.block), encoded.values.dtype)
    row = np.repeat(np.arange(rows), np.diff(encoded.segments))
    dense[row, encoded.indices] = encoded.values.reshape(-1, encoded.block)
    return dense.reshape(encoded.shape)


def parameters(encoded: Encoded) -> Any:
    """The schema's SparsityParameters. Axes before the last are dense ones, as many as the weight has."""
    axes = len(encoded.shape)
    made = schema.SparsityParametersT()
    row = schema.DimensionMetadataT()
    row.format = schema.DimensionType.SPARSE_CSR
    row.arraySegmentsType, row.arraySegments = _vector(encoded.segments)
    row.arrayIndicesType, row.arrayIndices = _vector(encoded.indices)
    made.dimMetadata = [*(_dense(size) for size in encoded.shape[:-1]), row]
    if encoded.block > 1:
        made.blockMap = np.array([axes - 1], np.int32)
        made.dimMetadata.append(_dense(encoded.block))
    made.traversalOrder = np.arange(len(made.dimMetadata), dtype=np.int32)
    return made


def _dense(size: int) -> Any:
    made = schema.DimensionMetadataT()
    made.format, made.denseSize = schema.DimensionType.DENSE, size
    return made


def _narrowest(values: Array) -> type[Any]:
    top = int(values.max(initial=0))
    return np.uint8 if top < 1 << 8 else np.uint16 if top < 1 << 16 else np.int32


def _vector(values: Array) -> tuple[int, Any]:
    kind = _narrowest(values)
    name, made = {
        np.uint8: ("Uint8Vector", schema.Uint8VectorT()),
        np.uint16: ("Uint16Vector", schema.Uint16VectorT()),
        np.int32: ("Int32Vector", schema.Int32VectorT()),
    }[kind]
    made.values = values.astype(kind)
    return getattr(schema.SparseIndexVector, name), made
