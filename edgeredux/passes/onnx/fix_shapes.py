"""Fixed shapes, for compilers that take no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.passes.onnx import files
from edgeredux.passes.onnx.fold import FoldGraph
from edgeredux.seams import PassContext, Tolerance


class FixAxes(ir.passes.InPlacePass):
    """Give named axes their size, let shapes be inferred anew, and fold what depended on them.

    Given   x["batch", "sequence"]; n = Shape(x); y = Reshape(h, Concat(n, [12, 32]))
    Result  x[1, 64]; y = Reshape(h, [1, 64, 12, 32])
    """

    def __init__(self, shapes: Mapping[str, int]) -> None:
        super().__init__()
        self.shapes = dict(shapes)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for value in model.graph.inputs:
            if value.shape is not None and any(_name(dim) in self.shapes for dim in value.shape):
                value.shape = ir.Shape([self.shapes.get(_name(dim), dim) for dim in value.shape])
                modified = True
        if not modified:
            return ir.passes.PassResult(model, False)
        # What was written about the inner values no longer holds; inference says it again from the inputs.
        # The outputs' own shapes stay, where a file without any would not be well formed.
        for value in model.graph.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([self.shapes.get(_name(dim), dim) for dim in value.shape])
        for graph in files.graphs(model):
            for node in graph:
                for value in node.outputs:
                    if not value.is_graph_output():
                        value.shape = None
        common.ShapeInferencePass()(model)
        FoldGraph(256 * 2**20)(model)
        common.ShapeInferencePass()(model)
        return ir.passes.PassResult(model, True)


def _name(dim: int | ir.SymbolicDim) -> str:
    return "" if isinstance(dim, int) or dim.value is None else str(dim.value)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FixShapes:
    """Dynamic axes of the inputs become fixed by name ({"batch": 1, "sequence": 64}); shape arithmetic folds away.

    Exact for inputs of that shape; others are refused by the file from then on. Declines when no input has an axis
    of these names.
    """

    shapes: dict[str, int] = Field(min_length=1)
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("the same arithmetic with shapes known beforehand", atol=1e-4, rtol=1e-4), init=False
    )

    def __post_init__(self) -> None:
        for name, size in self.shapes.items():
            if size < 1:
                raise ValueError(f"shapes: axis {name!r} must be at least 1, not {size}")

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The graph of fixed shape; details name the axes. Raises ArtifactError on an unreadable file."""
        model = files.read(source)
        axes = sorted({_name(dim) for value in model.graph.inputs for dim in value.shape or ()} - {""})
        known = {name: size for name, size in self.shapes.items() if name in axes}
        result = FixAxes(known)(model)
        if not result.modified:
            wanted, there = ", ".join(sorted(self.shapes)), ", ".join(axes) or "none"
            return Change("fix_shapes", False, f"declined: no input has an axis {wanted}; dynamic axes: {there}")
        files.write(result.model, out)
        said = ", ".join(f"{name} = {size}" for name, size in sorted(known.items()))
        return Change("fix_shapes", True, f"fixed {said}", {"shapes": known})
