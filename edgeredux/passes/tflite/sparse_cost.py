"""What a fully-connected layer costs dense and with sparse weights: measured rates, so that equal files come out equal.

Timing on the spot would be more exact and would make the output depend on who else uses the machine. The rates are
those of one thread of an AMD EPYC with AVX-512 VNNI under ai-edge-litert 2.3.0; tools/bench_tflite measures whole
layers beside them, docs/decisions/tflite-sparse.md says what they decide. On a CPU with narrower vectors the dense
kernels are slower and the sparse ones, which hardly use them, are not: there they decline too often, not too seldom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["float", "int8", "int8-dynamic"]  # dynamic: int8 weights, float activations
Resolver = Literal["xnnpack", "builtin_without_default_delegates"]  # as a target's runtime options name them

# Positions (batch x sequence) that the rates below were taken at; between them they are interpolated by the logarithm.
_POSITIONS = (1, 4, 16, 64)
# Multiplications of a dense layer, thousands a microsecond, weights in the cache.
_DENSE: dict[tuple[Resolver, Kind], tuple[float, ...]] = {
    ("xnnpack", "float"): (28.0, 55.0, 70.0, 105.0),
    ("xnnpack", "int8"): (95.0, 245.0, 260.0, 400.0),
    ("xnnpack", "int8-dynamic"): (90.0, 245.0, 260.0, 400.0),
    ("builtin_without_default_delegates", "float"): (18.0, 16.0, 22.5, 24.0),
    ("builtin_without_default_delegates", "int8"): (12.5, 32.0, 125.0, 145.0),
    ("builtin_without_default_delegates", "int8-dynamic"): (9.5, 10.0, 10.0, 10.0),
}
# Numbers stored in kept blocks that the sparse kernels work off, thousands a microsecond, by kind and block.
_SPARSE: dict[tuple[Kind, int], tuple[float, ...]] = {
    ("float", 4): (6.2, 9.0, 10.5, 11.5),
    ("float", 1): (1.55, 2.1, 2.3, 2.4),
    ("int8", 16): (8.8, 9.5, 9.6, 9.6),
    ("int8-dynamic", 16): (10.5, 10.0, 10.0, 10.0),
}
_SHARED: frozenset[tuple[Kind, int]] = frozenset({("float", 4), ("int8-dynamic", 16)})
# Of each row at each position, whatever it keeps.
_ROW_US: dict[Kind, float] = {"float": 0.001, "int8": 0.004, "int8-dynamic": 0.006}
_CALL_US = 0.2  # of handing over between the delegate's part and the built-in kernel
# Megabytes a microsecond, where the weights of the whole model are more than the named cache holds.
_STREAM = ((12 << 20, 0.043), (1 << 20, 0.12))


@dataclass(frozen=True)
class Layer:
    """A fully-connected layer as it is run: `positions` rows of input, and all weights of the model around it.

    Threads share a dense layer; of the sparse kernels only those in `_SHARED` do it, a position each at least.
    """

    kind: Kind
    rows: int
    columns: int
    positions: int
    model_bytes: int  # of the weights of the whole dense model, which pass through the cache at each inference
    threads: int = 1

    def dense_us(self, resolver: Resolver) -> float:
        """Expected microseconds with the dense weight."""
        size = self.rows * self.columns * (4 if self.kind == "float" else 1)
        rate = _at(_DENSE[resolver, self.kind], self.positions)
        return max(self.rows * self.columns * self.positions / 1e3 / rate, self._stream_us(size)) / self.threads

    def sparse_us(self, block: int, kept: int, size_bytes: int) -> float:
        """Expected microseconds with `kept` numbers stored in 1 x `block` blocks of `size_bytes` in all."""
        work = kept * self.positions / 1e3 / _at(_SPARSE[self.kind, block], self.positions)
        rows = self.rows * self.positions * _ROW_US[self.kind]
        shared = min(self.threads, self.positions) if (self.kind, block) in _SHARED else 1
        return (max(work, self._stream_us(size_bytes)) + rows) / shared + _CALL_US

    def _stream_us(self, size_bytes: int) -> float:
        rate = next((rate for cache, rate in _STREAM if self.model_bytes > cache), None)
        return 0.0 if rate is None else size_bytes / 1e6 / rate


def blocks(kind: Kind) -> tuple[int, ...]:
    """The block widths that LiteRT has a sparse kernel for."""
    return tuple(block for known, block in _SPARSE if known == kind)


def _at(rates: tuple[float, ...], positions: int) -> float:
    return float(np.interp(np.log2(max(1, positions)), np.log2(_POSITIONS), rates))
