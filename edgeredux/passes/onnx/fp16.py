"""Half precision for GPUs and NPUs: half the bytes, the same graph."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16, convert_np_to_float16
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.passes.onnx import files, ranges, unfit, zeros
from edgeredux.passes.onnx.clamp_mask import ClampMasks
from edgeredux.passes.onnx.portions import Hollow
from edgeredux.passes.onnx.refusal import Refused, declining, refusing
from edgeredux.seams import PassContext, Tolerance

# exp(-10000) is 0 in any precision, and scores added to it stay far from float16's end at -65504, where two summands
# give -inf and a row of -inf a softmax of NaN.
_MASK_FLOOR = -1e4
_LARGEST = 65504.0
_FEEDS = 4  # whose values are looked at: every value of the graph is held at once


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Fp16:
    """Float weights and arithmetic as float16; half the bytes.

    Given   y = MatMul(x, w)                                 float32
    Result  y = Cast(MatMul(Cast(x), w16))                   inputs and outputs float32 still, with `keep_io_types`

    By ONNX Runtime's float16 converter. Attention masks of -3.4e38 become -1e4 first. `float_operators`: operator types
    that stay float32, on top of those that have no float16 form. `exclude`: names of nodes that stay. Operators that
    read or write a value beyond half of float16's range (65504) on the calibration inputs stay float32 by themselves,
    such as a norm that squares large values: ONNX Runtime's CPU provider computes most of a float16 graph in float32,
    so the comparison of outputs would not show the overflow that a GPU would meet. Zeros stay zeros, and what is not
    zero does not become it: the converter takes float16's least number instead. Declines where nothing is float32.
    """

    keep_io_types: bool = True
    float_operators: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance(
            "float16 rounds each value to 11 bits, a relative error of 0.05 %, and tens of operators in a row add up "
            "to some 1 %; an overflow is infinite and fails anyway",
            atol=0.05,
            rtol=0.05,
            cosine=0.999,
        ),
        init=False,
    )

    @declining("fp16")
    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The float16 graph; details `masks` raised, `saturated` constants beyond +-65504, `float32` operator types
        left, `largest` value measured (None without calibration inputs), `beyond` (nodes that stay for it), `zeros`.

        Raises ArtifactError on an unreadable file, DataError on calibration inputs that do not fit.
        """
        model = files.read(source)
        common.NameFixPass()(model)
        if (problem := self._unfit(model)) is not None:
            raise Refused(problem)
        masks = ClampMasks(_MASK_FLOOR)
        masks(model)
        before, saturated = zeros.places(model), _saturated(model)
        common.ShapeInferencePass()(model)
        reached = ranges.largest(model, context.calibration[:_FEEDS], context.scratch) if context.calibration else {}
        beyond = _beyond(model, reached)
        blocked = sorted({*DEFAULT_OP_BLOCK_LIST, *self.float_operators})
        hollow = Hollow(model)
        with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
            given = Path(folder, "in.onnx")
            files.write(model, given)
            with refusing("ONNX Runtime cannot convert it"):
                converted = convert_float_to_float16(
                    onnx.load(given) if hollow else str(given),
                    disable_shape_infer=bool(hollow),  # done above, on the weights' own shapes
                    keep_io_types=self.keep_io_types,
                    op_block_list=blocked,
                    node_block_list=[*self.exclude, *beyond],
                )
                made = ir.from_proto(converted)
        common.TopologicalSortPass()(made)
        _straighten(made)
        _forget_types(made)
        hollow.fill(made, _half)
        files.came_apart(made, like=model)
        kept = zeros.check(before, made, "fp16")
        left = sorted({node.op_type for node in made.graph.all_nodes() if node.op_type in blocked})
        files.write(made, out)
        details = {"masks": masks.clamped, "saturated": saturated, "float32": left, "zeros": kept}
        details |= {"largest": max(reached.values()) if reached else None, "beyond": beyond}
        halves = sum(tensor.dtype == ir.DataType.FLOAT16 and len(tensor.shape) > 0 for tensor in _constants(made))
        why = f"{halves} weights to float16"
        why += f", {len(masks.clamped)} masks raised to {_MASK_FLOOR:g}" if masks.clamped else ""
        why += f", {saturated} values beyond {_LARGEST:g} cut to it" if saturated else ""
        why += f", {len(beyond)} operators stay float32 as they exceed its range" if beyond else ""
        return Change("fp16", True, why, details)

    def _unfit(self, model: ir.Model) -> str | None:
        unknown = unfit.unknown_node(model, self.exclude)
        unknown = unknown or unfit.unknown_operator(model, self.float_operators, "float_operators")
        if unknown is not None:
            return unknown
        if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.all_nodes()):
            return "the graph is quantised already, and the scales of its Q/DQ pairs are float32"
        if not any(tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) > 0 for tensor in _constants(model)):
            return "no constant of this graph is float32"
        return None


def _constants(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Constants of all graphs, those of Constant nodes among them."""
    for graph in files.graphs(model):
        for value in (*graph.initializers.values(), *(out for node in graph for out in node.outputs)):
            tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
            if tensor is not None:
                yield tensor


def _half(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    """The weight as the converter makes it; made each time that it is read, and never all of them at once."""
    if dtype != ir.DataType.FLOAT16:
        return tensor

    def convert() -> ir.TensorProtocol:
        made = ir.tensor(convert_np_to_float16(tensor.numpy()), name=tensor.name)
        if isinstance(tensor, ir.ExternalTensor):
            tensor.release()
        return made

    return ir.LazyTensor(convert, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


def _beyond(model: ir.Model, reached: dict[str, float]) -> list[str]:
    """The nodes that read or write a value beyond half of float16's range: other inputs may be twice as large."""
    over = {name for name, largest in reached.items() if largest > _LARGEST / 2}
    return [
        str(node.name)
        for node in model.graph
        if any(str(value.name) in over for value in (*node.inputs, *node.outputs) if value)
    ]


def _straighten(model: ir.Model) -> None:
    """Between two operators that stay float32 the converter casts to float16 and back: read the float32 value instead.

    Given   a float32; b = Cast(a, float16); c = Cast(b, float32); y = Op(c)
    Result  y = Op(a)
    """
    for graph in files.graphs(model):
        for node in graph:
            inner = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
            if inner is None or inner.op_type != "Cast" or inner.inputs[0] is None:
                continue
            there_and_back = inner.attributes.get_int("to", 0), node.attributes.get_int("to", 0)
            if there_and_back != (ir.DataType.FLOAT16, ir.DataType.FLOAT) or inner.inputs[0].dtype != ir.DataType.FLOAT:
                continue
            if inner.graph is graph and not node.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(node.outputs[0], inner.inputs[0])
    common.RemoveUnusedNodesPass()(model)


def _forget_types(model: ir.Model) -> None:
    """Drop what the file said of the types of inner values: the converter leaves some float32 that are float16 now."""
    for graph in files.graphs(model):
        for node in graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.type, value.shape = None, None
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.dtype = value.const_value.dtype


def _saturated(model: ir.Model) -> int:
    floats = (tensor.numpy() for tensor in _constants(model) if tensor.dtype.is_floating_point())
    return sum(int((np.isfinite(array) & (np.abs(array) > _LARGEST)).sum()) for array in floats)
