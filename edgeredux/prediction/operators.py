"""A model as a cost model sees it: what each operator multiplies, reads and writes, whatever its file format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Kind: TypeAlias = Literal[
    "conv",  # dense convolution with a kernel larger than one element
    "dilated",  # dense convolution whose kernel has gaps
    "pointwise",  # dense convolution with a kernel of one element
    "depthwise",  # as many groups as input channels
    "grouped",  # several groups of several channels each
    "deconv",  # transposed convolution
    "linear",  # activations times stored weights
    "matmul",  # activations times activations
    "elementwise",
    "activation",  # transcendental functions: GELU, SiLU, sigmoid, tanh
    "softmax",
    "norm",  # over features at run time: layer, group and instance normalisation
    "reduce",  # pooling and sums
    "resize",
    "move",  # nothing computed: transpose, concat, slice, pad, gather
]
KINDS: tuple[Kind, ...] = get_args(Kind)
CONTRACTIONS: tuple[Kind, ...] = ("conv", "dilated", "pointwise", "depthwise", "grouped", "deconv", "linear", "matmul")


@dataclass(frozen=True)
class Operator:
    """One operator. Counts are elements, not bytes: the same graph runs in several numeric formats.

    A contraction is `groups` products of [rows, inner] with [inner, columns]: for a convolution rows are output
    positions, inner is kernel size times input channels of a group, columns are output channels of a group.
    """

    kind: Kind
    reads: float  # activation elements
    writes: float
    weights: float = 0.0  # stored elements
    rows: float = 0.0
    inner: float = 0.0
    columns: float = 0.0
    groups: float = 1.0
    channels: float = 0.0  # input channels of a group: `inner` is a multiple of it
    strided: bool = False  # a convolution that skips places: no Winograd
    bits: int = 0  # of integer activations; 0: computed in float
    depth: float = 0.0  # channels (features) of the output: what vector hardware pads; 0 where that is not known
    name: str = ""

    @property
    def integer(self) -> bool:
        """Whether it multiplies integers."""
        return self.bits > 0

    @property
    def macs(self) -> float:
        """Multiply-accumulates."""
        return self.rows * self.inner * self.columns * self.groups

    def padded_macs(self, lanes: int) -> float:
        """Multiply-accumulates when input and output channels fill whole vectors of `lanes` elements.

        A depthwise convolution has its channels in the lanes: its groups are padded instead. Groups of a few
        channels are taken as they are: how they are packed differs between runtimes, and they have a rate of their own.
        """
        if not self.macs or self.kind == "grouped":
            return self.macs
        if self.kind == "depthwise":
            return self.rows * self.inner * self.columns * _up(self.groups, lanes)
        channels = self.channels or self.inner
        return self.rows * self.inner / channels * _up(channels, lanes) * _up(self.columns, lanes) * self.groups

    def padded_elements(self, lanes: int) -> float:
        """Activation elements read and written when channels fill whole vectors of `lanes` elements."""
        share_out = _up(self.depth, lanes) / self.depth if self.depth else 1.0
        given = self.channels * (self.groups if self.weights else 1.0)
        share_in = _up(given, lanes) / given if given and self.weights else share_out
        return self.reads * share_in + self.writes * share_out


def _up(number: float, multiple: int) -> float:
    return math.ceil(number / multiple) * multiple


def contraction(
    kind: Kind,
    rows: float,
    inner: float,
    columns: float,
    *,
    groups: float = 1.0,
    reads: float,
    writes: float,
    stored: bool = True,
    channels: float = 0.0,
    strided: bool = False,
    bits: int = 0,
    name: str = "",
) -> Operator:
    """A product of matrices; with `stored` its right side are weights in the file."""
    weights = inner * columns * groups if stored else 0.0
    depth = columns * groups if stored else columns
    return Operator(
        kind, reads, writes, weights, rows, inner, columns, groups, channels or inner, strided, bits, depth, name
    )


def convolution_kind(groups: int, inputs: int, kernel: Sequence[int], dilations: Sequence[int] = ()) -> Kind:
    """Which of the convolutions this is."""
    if groups > 1:
        return "depthwise" if groups == inputs else "grouped"
    if math.prod(kernel) == 1:
        return "pointwise"
    return "dilated" if max(dilations, default=1) > 1 else "conv"


def total_macs(operators: Iterable[Operator]) -> float:
    """Multiply-accumulates of the model."""
    return sum(operator.macs for operator in operators)
