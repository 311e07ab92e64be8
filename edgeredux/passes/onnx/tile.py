"""Tile-wise zeros turned into smaller dense products, in standard operators."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.passes.onnx import channels, files, tile_cost
from edgeredux.passes.onnx.tile_bands import Flags, Groups, density, groupings
from edgeredux.passes.onnx.tile_lower import Lowering
from edgeredux.passes.onnx.tile_order import OrderChannels
from edgeredux.seams import PassContext, Tolerance

_TILED = 0.95  # a few weights that happen to be zero in all rows of a band make no tiles
_UNSTRUCTURED = "its zeros are not in tiles: no few bands of outputs skip the same inputs"


class LowerTiles(ir.passes.InPlacePass):
    """Lower every MatMul, Gemm and 1x1 Conv whose zeros lie in bands, where the cost model says that it pays."""

    def __init__(self, rates: tile_cost.Rates, tokens: int, threads: int, minimum_gain: float, most: int) -> None:
        super().__init__()
        self.rates = rates
        self.tokens = tokens
        self.threads = threads
        self.minimum_gain = minimum_gain
        self.most = most
        self.layers: dict[str, dict[str, Any]] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        OrderChannels(self._choose)(model)
        for graph in list(files.graphs(model)):
            lowering = Lowering(graph, spread_bias=self.rates is tile_cost.INT8)
            for node in list(graph):
                if channels.is_linear(node) and (node.op_type != "Conv" or _pointwise(node)):
                    self._lower(node, lowering)
        modified = any(layer["lowered"] for layer in self.layers.values())
        if modified:
            common.RemoveUnusedNodesPass()(model)
            common.ShapeInferencePass()(model)
        return ir.passes.PassResult(model, modified)

    def _choose(self, kept: Flags) -> tuple[Groups, float]:
        """The cheapest grouping at this pass's tokens; the whole matrix as one band is always among them."""
        cost, groups = self._costs(kept, self.tokens, "MatMul")[0]
        return groups, cost

    def _costs(self, kept: Flags, tokens: int, kind: str) -> list[tuple[float, Groups]]:
        """Every grouping and its cost, cheapest first."""

        def cost(groups: Groups) -> float:
            bands = groups.bands()
            if len(bands) > self.most:
                return math.inf
            return tile_cost.banded(self.rates, tokens, bands, kept.shape[1], self.threads, planes=kind == "Conv")

        return sorted(((cost(groups), groups) for groups in groupings(kept, self.most)), key=lambda item: item[0])

    def _lower(self, node: ir.Node, lowering: Lowering) -> None:
        kept = channels.rows(node).reshape(channels.rows(node).shape[:2]) != 0
        outputs, inputs = kept.shape
        name = str(node.name or node.outputs[0].name)
        zeros = 1 - float(kept.mean())
        if zeros == 0:
            return
        tokens = _positions(node) or self.tokens
        said: dict[str, Any] = {"shape": [inputs, outputs], "zeros": round(zeros, 4)}
        # The cheapest that skips something is compared with the dense layer.
        tried = ((cost, groups.bands()) for cost, groups in self._costs(kept, tokens, node.op_type) if cost < math.inf)
        cost, bands = next(((c, b) for c, b in tried if density(b, outputs, inputs) < _TILED), (math.inf, ()))
        if not bands:
            self.layers[name] = {**said, "lowered": False, "reason": _UNSTRUCTURED}
            return
        left = density(bands, outputs, inputs)
        gain = tile_cost.dense(self.rates, tokens, inputs, outputs, self.threads) / cost
        said |= {"density": round(left, 4), "bands": len(bands), "expected_gain": round(gain, 2), "tokens": tokens}
        reason = f"{len(bands)} dense products do {left:.1%} of the multiplications: {gain:.2f}x expected"
        lowered = gain >= self.minimum_gain
        if lowered:
            lowering.lower(node, bands)
        else:
            reason += f" at {tokens} tokens, below {self.minimum_gain:g}x"
        self.layers[name] = {**said, "lowered": lowered, "reason": reason}


def _pointwise(conv: ir.Node) -> bool:
    # A stride costs a 1x1 convolution nothing, padding would need care: ask for none.
    return channels.rows(conv).shape[2:] == (1, 1) and not any(conv.attributes.get_ints("pads", [0]))


def _positions(node: ir.Node) -> int | None:
    """Pixels of a convolution's input, where known; None for other operators."""
    shape = node.inputs[0].shape if node.op_type == "Conv" and node.inputs[0] is not None else None
    sizes = [size for size in tuple(shape)[2:] if isinstance(size, int)] if shape is not None else []
    return max(1, math.prod(sizes)) if shape is not None and len(sizes) == len(shape) - 2 else None


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Tile:
    """MatMul, Gemm and 1x1 Conv whose outputs fall into bands that skip the same inputs, as one small product a band.

    Given   y = MatMul(x, w)                                       w of the pattern tile:GxB, or zeros in any such bands
    Result  y = Concat(MatMul(Gather(x, rows1), w1), ..., MatMul(Gather(x, rowsG), wG))

    Bands are found from the zeros alone, in any number up to `most_bands`, of any size, with any number of inputs each;
    inputs that lie in blocks are gathered block by block. Channels between two layers are first put in an order that
    makes two bands' inputs slices (tile_order.py); equal reads are shared. A layer is lowered where the cost model
    (tile_cost.py) expects at least `minimum_gain` at `tokens` positions and `threads` threads (default: the run's);
    `int8` asks it about integer products, for files that int8_dynamic quantises next. Put dead_structure before: what
    no band reads leaves the layer that makes it. Declines where no zeros lie in bands or none of them gains.
    """

    minimum_gain: float = Field(default=1.1, ge=0, le=100)
    tokens: int = Field(default=32, ge=1, le=1_000_000)
    threads: int | None = Field(default=None, ge=1, le=1024)
    most_bands: int = Field(default=16, ge=1, le=64)
    int8: bool = False
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("sums lose terms that are zero, in another order", atol=1e-4, rtol=1e-4), init=False
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The lowered graph; details `layers` say for each layer with zeros what was chosen and why.

        Raises ArtifactError on an unreadable file.
        """
        model = files.read(source)
        common.NameFixPass()(model)
        common.ShapeInferencePass()(model)
        rates = tile_cost.INT8 if self.int8 else tile_cost.FLOAT
        step = LowerTiles(rates, self.tokens, self.threads or context.threads, self.minimum_gain, self.most_bands)
        result = step(model)
        layers = dict(sorted(step.layers.items()))
        if not layers:
            return Change("tile", False, "declined: no MatMul, Gemm or 1x1 Conv with constant weights has a zero")
        lowered = [layer for layer in layers.values() if layer["lowered"]]
        details = {"layers": layers}
        if not result.modified:
            tiled = [layer for layer in layers.values() if "expected_gain" in layer]
            best = max(tiled, key=lambda layer: layer["expected_gain"])["reason"] if tiled else _UNSTRUCTURED
            return Change("tile", False, f"declined: no layer of {len(layers)} with zeros gains: {best}", details)
        files.write(result.model, out)
        before, after = (sum(_macs(layer, how) for layer in lowered) for how in ("dense", "banded"))
        why = f"{len(lowered)} of {len(layers)} layers with zeros lowered, {before} multiplications now {after}"
        return Change("tile", True, why, {**details, "macs_before": before, "macs_after": after})


def _macs(layer: dict[str, Any], how: str) -> int:
    dense: int = math.prod(layer["shape"])
    return dense if how == "dense" else round(dense * layer["density"])
