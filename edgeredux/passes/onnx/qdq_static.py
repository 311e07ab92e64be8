"""Static quantisation as QuantizeLinear / DequantizeLinear pairs, the form that NPU compilers take."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.errors import one_line
from edgeredux.passes.onnx import calibration, files, zeros
from edgeredux.seams import PassContext, Tolerance

_TYPES = {"uint8": QuantType.QUInt8, "uint16": QuantType.QUInt16, "int8": QuantType.QInt8}
_PERCENTILE = 99.999  # ONNX Runtime's default


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class QdqStatic:
    """Every tensor's range measured on the calibration feeds and written into the file, QNN's operator rules kept.

    Given   y = MatMul(x, w)
    Result  y = DQ(Q(MatMul(DQ(Q(x)), DQ(wq))))

    `activation`: uint16 keeps embeddings (MiniLM 0.999 cosine), uint8 is half the traffic and for CNNs. `weight`:
    int8, symmetric, so zeros stay zeros. `per_channel`: one scale an output channel, MatMul weights included: ONNX
    Runtime's helper still writes those per tensor for QNN (MiniLM: cosine 0.963 instead of 0.999), while Qualcomm's
    HTP library takes and computes them per channel. `method`: minmax, entropy or percentile (ONNX Runtime's
    calibrators). LayerNorm and Gelu chains are first fused into the one standard operator each. Declines on dynamic
    shapes (put fix_shapes before, or give the artifact `shapes`) and on constants below -1e30 (put clamp_mask
    before): they take the whole range, measured cosine 0.36. Raises DataError without calibration feeds.
    """

    activation: Literal["uint16", "uint8"] = "uint16"
    weight: Literal["int8", "uint8"] = "int8"
    per_channel: bool = True
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    exclude: tuple[str, ...] = ()
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("quantised arithmetic; this catches breakage, the budget judges quality", cosine=0.9),
        init=False,
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The QDQ graph; details count `quantised` tensors and `calibrated` feeds. Raises ArtifactError, DataError."""
        model = files.read(source)
        if (problem := _unfit(model)) is not None:
            return Change("qdq_static", False, f"declined: {problem}")
        unknown = set(self.exclude) - {node.name for node in model.graph}
        if unknown:
            return Change("qdq_static", False, f"declined: exclude names {min(unknown)!r}, which is no node")
        feeds = calibration.fitting(model, context.calibration, "qdq_static")
        before = zeros.places(model)
        common.NameFixPass()(model)
        try:
            with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
                given, fused, made = (Path(folder, f"{name}.onnx") for name in ("in", "fused", "out"))
                files.write(model, given)
                prepared = fused if qnn_preprocess_model(given, fused, fuse_layernorm=True) else given
                config = get_qnn_qdq_config(
                    prepared,
                    calibration.FeedReader(feeds),
                    calibrate_method=calibration.METHODS[self.method],
                    activation_type=_TYPES[self.activation],
                    weight_type=_TYPES[self.weight],
                    per_channel=self.per_channel,
                    init_overrides=self._overrides(files.read(prepared)),
                    nodes_to_exclude=list(self.exclude) or None,
                )
                config.op_types_to_quantize = sorted(config.op_types_to_quantize)  # it comes from a set
                ranges = made.with_name("ranges.json")
                operators = config.op_types_to_quantize
                calibration.write_ranges(prepared, feeds, self.method, _PERCENTILE, operators, ranges)
                quantize_static(
                    prepared,
                    made,
                    calibration_cache_path=ranges,
                    calibrate_method=config.calibrate_method,
                    quant_format=config.quant_format,
                    activation_type=config.activation_type,
                    weight_type=config.weight_type,
                    op_types_to_quantize=operators,
                    nodes_to_exclude=config.nodes_to_exclude,
                    per_channel=config.per_channel,
                    use_external_data_format=config.use_external_data_format,
                    extra_options=config.extra_options,
                )
                quantised = files.read(made)
                pairs = sum(node.op_type == "QuantizeLinear" for node in quantised.graph.all_nodes())
                if pairs:
                    kept = zeros.check(before, quantised, "qdq_static") if self.weight == "int8" else None
                    common.ClearMetadataAndDocStringPass()(quantised)
                    files.write(quantised, out)
        except (ValueError, RuntimeError, NotImplementedError, KeyError, TypeError) as problem:
            return Change("qdq_static", False, one_line(f"declined: ONNX Runtime cannot quantise it: {problem}", 300))
        if not pairs:
            return Change("qdq_static", False, "declined: no operator of this graph has a quantised form")
        why = f"{pairs} tensors quantised, ranges from {len(feeds)} calibration feeds"
        details = {"quantised": pairs, "calibrated": len(feeds), "zeros": kept}
        return Change("qdq_static", True, why, details)

    def _overrides(self, model: ir.Model) -> dict[str, list[dict[str, Any]]]:
        """What ONNX Runtime's helper would choose otherwise than the HTP library can do."""
        found: dict[str, list[dict[str, Any]]] = {}
        for node in model.graph:
            weight = node.inputs[1] if len(node.inputs) > 1 else None
            array = files.constant(weight)
            if weight is None or array is None or not weight.is_initializer() or node.name in self.exclude:
                continue
            if node.op_type == "MatMul" and self.per_channel and array.ndim == 2:
                symmetric = self.weight == "int8"
                found[str(weight.name)] = [{"quant_type": _TYPES[self.weight], "axis": 1, "symmetric": symmetric}]
            elif node.op_type == "LayerNormalization" and self.activation == "uint16":
                # Beside 16-bit activations an int8 scale sends the whole LayerNormalization to the CPU.
                found[str(weight.name)] = [{"quant_type": QuantType.QUInt16}]
        return found


def _unfit(model: ir.Model) -> str | None:
    kinds = {node.op_type for node in model.graph.all_nodes()}
    if kinds & {"QuantizeLinear", "DynamicQuantizeLinear"}:
        return "the graph is quantised already"
    for value in model.graph.inputs:
        if value.shape is None or not value.shape.is_static():
            return (
                f"input {value.name} has dynamic axes {value.shape}; put fix_shapes before, or give the artifact shapes"
            )
    for graph in files.graphs(model):
        for value in (*graph.initializers.values(), *(out for node in graph for out in node.outputs)):
            array = files.constant(value)
            if array is not None and array.dtype.kind == "f" and array.size and float(array.min()) <= -1e30:
                least = f"{float(array.min()):g}"
                return f"constant {value.name} reaches {least} and would take the range; put clamp_mask before"
    return None
