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

_ALLOWZERO = 14  # the opset that brought this attribute of Reshape


class FoldGraph(ir.passes.InPlacePass):
    """Fold what does not depend on inputs, merge equal nodes and weights, drop what nobody reads.

    Given   y = MatMul(x, Transpose(w)); z = Identity(y); v = w2 (equal to w)
    Result  y = MatMul(x, wt), wt a new initializer; w2 gone
    """

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self.limit_bytes = limit_bytes

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before, gathers = _shape_of(model), _gathers(model)
        # onnxscript counts elements, not bytes; 4 bytes an element is what weights have.
        limit = self.limit_bytes // 4
        optimizer.optimize_ir(model, num_iterations=4, input_size_limit=limit, output_size_limit=limit)
        ir.passes.Sequential(
            _GatherInOrder(),
            common.IdentityEliminationPass(),
            _OwnOutputs(),
            _OldReshapes(),
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
        return ir.passes.PassResult(model, _shape_of(model) != before or _gathers(model) != gathers)


class _GatherInOrder(ir.passes.InPlacePass):
    """torch exports an attention mask of fixed shape as a GatherND of every element in order.

    Given   y = GatherND(x[1, 64], [[0, 0], [0, 1], ...])
    Result  y = Reshape(x, shape of y)
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for graph in list(files.graphs(model)):
            for node in [node for node in graph if node.op_type == "GatherND" and node.domain == ""]:
                data, indices, out = node.inputs[0], files.constant(node.inputs[1]), node.outputs[0]
                if data is None or data.shape is None or not data.shape.is_static() or indices is None:
                    continue
                shape = data.shape.numpy()
                if node.attributes.get_int("batch_dims", 0) or indices.shape[-1] != len(shape):
                    continue
                places = np.moveaxis(indices.astype(np.int64), -1, 0)
                if (places < 0).any():
                    continue
                flat = np.ravel_multi_index(tuple(places), shape)
                if not np.array_equal(flat.reshape(-1), np.arange(np.prod(shape))):
                    continue
                target = ir.val(f"{out.name}_shape", const_value=ir.tensor(np.array(flat.shape, np.int64)))
                graph.register_initializer(target)
                made = ir.node("Reshape", [data, target], name=node.name)
                made.outputs[0].name = out.name
                ir.convenience.replace_nodes_and_values(graph, node, [node], [made], [out], [made.outputs[0]])
                modified = True
        return ir.passes.PassResult(model, modified)


class _OwnOutputs(ir.passes.InPlacePass):
    """A branch must make what it gives: onnx_ir drops the Identity by which one hands on a value from outside.

    Given   y = If(c) then { return x }        x from outside of the branch
    Result  y = If(c) then { v = Identity(x); return v }
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for graph in [graph for graph in files.graphs(model) if graph is not model.graph]:
            own = {id(value) for value in (*graph.inputs, *graph.initializers.values())}
            own |= {id(value) for node in graph for value in node.outputs}
            for index, value in enumerate(graph.outputs):
                if id(value) not in own:
                    made = ir.node("Identity", [value])
                    graph.append(made)
                    made.outputs[0].type, made.outputs[0].shape = value.type, value.shape
                    graph.outputs[index] = made.outputs[0]
                    modified = True
        return ir.passes.PassResult(model, modified)


class _OldReshapes(ir.passes.InPlacePass):
    """onnxscript says allowzero of the Reshapes it makes, which opsets before 14 do not know.

    Given   y = Reshape(x, [1, -1, 4], allowzero=1)     opset 11
    Result  y = Reshape(x, [1, -1, 4])                  the same, as the shape has no zero
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        old = model.opset_imports.get("", _ALLOWZERO) < _ALLOWZERO
        for node in model.graph.all_nodes() if old else ():
            if node.op_type != "Reshape" or node.domain != "" or "allowzero" not in node.attributes:
                continue
            shape = files.constant(node.inputs[1])
            if node.attributes.get_int("allowzero", 0) == 0 or (shape is not None and shape.all()):
                del node.attributes["allowzero"]
                modified = True
        return ir.passes.PassResult(model, modified)


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


def _gathers(model: ir.Model) -> int:
    return sum(node.op_type == "GatherND" for node in model.graph.all_nodes())


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
        before, weights = _shape_of(model)
        try:
            result = FoldGraph(self.limit_bytes)(model)
        except (ir.passes.PassError, RuntimeError) as problem:
            return Change("fold", False, one_line(f"declined: the optimizer cannot read this graph: {problem}", 300))
        if not result.modified:
            return Change("fold", False, "declined: nothing to fold, merge or remove")
        files.write(result.model, out)
        after, left = _shape_of(result.model)
        return Change("fold", True, f"{before} operators became {after}, {weights} bytes of constants {left}")
