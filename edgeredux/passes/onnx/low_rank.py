"""A weight matrix as the product of two thin ones, where that costs less."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.passes.onnx import channels, files, tile_cost
from edgeredux.passes.onnx.weights import initializer, stored, transposed
from edgeredux.seams import PassContext, Tolerance

Array = channels.Array
Said = dict[str, Any]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LowRank:
    """MatMul and Gemm by a matrix of low rank, as two products through `rank` channels. Changes what is computed.

    Given   y = MatMul(x, w)                w [inputs, outputs] with singular values s1 >= s2 >= ...
    Result  y = MatMul(MatMul(x, a), b)     a [inputs, rank], b [rank, outputs], a @ b the nearest to w of that rank

    `rank` is the smallest that keeps the share `energy` of the squared singular values (Eckart and Young 1936: no
    matrix of that rank is nearer to w). The error is of the weights; what it does to the outputs is for the parity
    check to say, with `cosine`. A layer is lowered where the cost model (tile_cost.py) expects
    at least `minimum_gain` at `tokens` positions and `threads` threads (default: the run's); the others say why not.
    Biases stay with the second product. Put it before quantisation; zeros in a weight are lost in its factors, so a
    weight with a tenth of zeros or more is left to the passes that use zeros. Declines where no layer gains.
    """

    energy: float = Field(default=0.9999, gt=0, le=1)
    minimum_gain: float = Field(default=1.1, ge=0, le=100)
    tokens: int = Field(default=32, ge=1, le=1_000_000)
    threads: int | None = Field(default=None, ge=1, le=1024)
    cosine: float = Field(default=0.99, gt=0, le=1)
    int8: bool = False
    format: Format = dataclasses.field(default="onnx", init=False)

    @property
    def tolerance(self) -> Tolerance:
        """As asked: what the weights lose is chosen by `energy`, what the outputs may lose by `cosine`."""
        return Tolerance("weights lose their smallest directions, as asked for by cosine", cosine=self.cosine)

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The graph with two thin products; details `layers` say rank, energy, gain and reason of each.

        Raises ArtifactError on an unreadable file.
        """
        model = files.read(source)
        common.NameFixPass()(model)
        layers: dict[str, Said] = {}
        seen: dict[tuple[int, bool, int], tuple[Said, tuple[ir.Value, ir.Value] | None]] = {}
        for graph in list(files.graphs(model)):
            for node in list(graph):
                if node.op_type not in ("MatMul", "Gemm") or not channels.is_linear(node):
                    continue
                key = id(node.inputs[1]), transposed(node), id(graph)
                if key not in seen:  # two layers may share a weight
                    said, factors = self._factor(node, context.threads)
                    seen[key] = said, None if factors is None else _stored(node, graph, *factors)
                said, values = seen[key]
                layers[str(node.name or node.outputs[0].name)] = said
                if values is not None:
                    _replace(node, graph, *values)
        if not layers:
            return Change("low_rank", False, "declined: no MatMul or Gemm with a constant float weight")
        details = {"layers": dict(sorted(layers.items()))}
        lowered = [said for said in layers.values() if said["lowered"]]
        if not lowered:
            best = max(layers.values(), key=lambda said: said["expected_gain"])
            return Change("low_rank", False, f"declined: no layer of {len(layers)} gains: {best['reason']}", details)
        common.RemoveUnusedNodesPass()(model)
        common.ShapeInferencePass()(model)
        files.write(model, out)
        before = sum(said["shape"][0] * said["shape"][1] for said in lowered)
        after = sum(said["rank"] * sum(said["shape"]) for said in lowered)
        why = f"{len(lowered)} of {len(layers)} layers in two thin products, {before} weights now {after}"
        return Change("low_rank", True, why, {**details, "macs_before": before, "macs_after": after})

    def _factor(self, node: ir.Node, threads: int) -> tuple[Said, tuple[Array, Array] | None]:
        """What is said of a layer, and the two factors [inputs, rank] and [rank, outputs] where they pay."""
        matrix = channels.rows(node).T.astype(np.float64)  # [inputs, outputs]
        inputs, outputs = matrix.shape
        zeros = float((matrix == 0).mean())
        said: Said = {"shape": [inputs, outputs], "lowered": False, "expected_gain": 0.0}
        if zeros >= 0.1:
            return {**said, "reason": f"{zeros:.0%} of its weights are zero, which two factors would fill"}, None
        if not np.isfinite(matrix).all():
            return {**said, "reason": "a weight is not finite"}, None
        left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
        rank, kept = _rank(sizes, self.energy)
        rates = tile_cost.INT8 if self.int8 else tile_cost.FLOAT
        wide = tile_cost.dense(rates, self.tokens, inputs, outputs, self.threads or threads)
        thin = tile_cost.dense(rates, self.tokens, inputs, rank, self.threads or threads)
        thin += tile_cost.dense(rates, self.tokens, rank, outputs, self.threads or threads)
        gain = wide / thin
        reason = f"rank {rank} of {min(inputs, outputs)} keeps {kept:.4%}: {gain:.2f}x expected at {self.tokens} tokens"
        said |= {"rank": rank, "energy": kept, "expected_gain": round(gain, 3)}
        if gain < self.minimum_gain:
            return {**said, "reason": f"{reason}, below {self.minimum_gain:g}x"}, None
        root = np.sqrt(sizes[:rank])  # shared out evenly, so that neither factor needs a wider range
        first, second = left[:, :rank] * root, root[:, None] * right[:rank]
        return {**said, "lowered": True, "reason": reason}, (first.astype(np.float32), second.astype(np.float32))


def _rank(sizes: Array, energy: float) -> tuple[int, float]:
    """The smallest rank whose squared singular values are the share `energy` of all, and the share it has."""
    squares = np.cumsum(sizes.astype(np.float64) ** 2)
    if squares[-1] == 0:
        return 1, 1.0
    shares = squares / squares[-1]
    # Rounding may leave the last share a hair below 1.
    rank = min(int(np.searchsorted(shares, min(energy, float(shares[-1])))) + 1, len(shares))
    return rank, float(shares[rank - 1])


def _stored(node: ir.Node, graph: ir.Graph, first: Array, second: Array) -> tuple[ir.Value, ir.Value]:
    weight = node.inputs[1]
    assert weight is not None
    made = initializer(graph, f"{weight.name}.low_rank_in", first)
    return made, initializer(graph, f"{weight.name}.low_rank_out", stored(node, second.T))


def _replace(node: ir.Node, graph: ir.Graph, first: ir.Value, second: ir.Value) -> None:
    """`node` reads the product of its input with `first`, and multiplies by `second`."""
    thin = ir.node("MatMul", [node.inputs[0], first], name=f"{node.name}_low_rank")
    graph.insert_before(node, thin)
    node.replace_input_with(0, thin.outputs[0])
    node.replace_input_with(1, second)
