"""Constant folding and tidying through the optimizers that come with ONNX."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.errors import one_line
from edgeredux.passes.onnx import files
from edgeredux.seams import PassContext, Tolerance


class FoldGraph(ir.passes.InPlacePass):
    """Fold what does not depend on inputs, merge equal nodes and weights, drop what nobody reads.

    Given   y = MatMul(x, Transpose(w)); z = Identity(y); v = w2 (equal to w)
    Result  y = MatMul(x, wt), wt a new initializer; w2 gone
    """

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self.limit_bytes = limit_bytes

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = _shape_of(model)
        # onnxscript counts elements, not bytes; 4 bytes an element is what weights have.
        limit = self.limit_bytes // 4
        optimizer.optimize_ir(model, num_iterations=4, input_size_limit=limit, output_size_limit=limit)
        ir.passes.Sequential(
            common.IdentityEliminationPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0),
            common.LiftSubgraphInitializersToMainGraphPass(),
            _Contiguous(),
            common.CommonSubexpressionEliminationPass(),
            common.DeduplicateHashedInitializersPass(size_limit=1 << 40),
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            common.RemoveUnusedOpsetsPass(),
            common.ClearMetadataAndDocStringPass(),
        )(model)
        return ir.passes.PassResult(model, _shape_of(model) != before)


class _Contiguous(ir.passes.InPlacePass):
    """Folded transposes are NumPy views, which the hash of the deduplication cannot read."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for graph in files.graphs(model):
            for value in graph.initializers.values():
                array = files.constant(value)
                if array is not None and not array.flags.c_contiguous:
                    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
                    modified = True
        return ir.passes.PassResult(model, modified)


def _shape_of(model: ir.Model) -> tuple[int, int]:
    return files.count(model), sum(tensor.nbytes for tensor in files.initializers(model))


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Fold:
    """Constant folding, common subexpressions, equal weights stored once, dead nodes removed. Exact.

    `limit_bytes`: no constant larger than this is made (a folded Expand can be huge). Declines when neither an
    operator nor a byte of weights goes away.
    """

    limit_bytes: int = 256 * 2**20
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("the same arithmetic, done once instead of every run", atol=1e-4, rtol=1e-4), init=False
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The folded graph; its Change counts the operators. Raises ArtifactError on an unreadable file."""
        model = files.read(source)
        before = files.count(model)
        try:
            result = FoldGraph(self.limit_bytes)(model)
        except (ir.passes.PassError, RuntimeError) as problem:
            return Change("fold", False, one_line(f"declined: the optimizer cannot read this graph: {problem}", 300))
        if not result.modified:
            return Change("fold", False, "declined: nothing to fold, merge or remove")
        files.write(result.model, out)
        return Change("fold", True, f"{before} operators became {files.count(result.model)}")
