"""Static quantisation as QuantizeLinear / DequantizeLinear pairs, the form that NPU compilers take."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.passes.onnx import calibration, files, unfit, zeros
from edgeredux.passes.onnx.refusal import Refused, declining, refusing
from edgeredux.seams import Feed, PassContext, Tolerance

_TYPES = {"uint8": QuantType.QUInt8, "uint16": QuantType.QUInt16, "int8": QuantType.QInt8}
_PERCENTILE = 99.999  # ONNX Runtime's default
_REFUSAL = "ONNX Runtime cannot quantise it"
_Overrides: TypeAlias = "dict[str, list[dict[str, Any]]]"  # by initializer, as ONNX Runtime takes them


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

    @declining("qdq_static")
    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The QDQ graph; details count `quantised` tensors and `calibrated` feeds; `zeros` (None where `weight` is
        uint8). Raises ArtifactError, DataError.
        """
        model = files.read(source)
        if (problem := _unfit(model) or unfit.unknown_node(model, self.exclude)) is not None:
            raise Refused(problem)
        feeds = calibration.fitting(model, context.calibration, "qdq_static")
        before = zeros.places(model)
        common.NameFixPass()(model)
        with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
            given, fused, made = (Path(folder, f"{name}.onnx") for name in ("in", "fused", "out"))
            files.write(model, given)
            with refusing(_REFUSAL):
                prepared = fused if qnn_preprocess_model(given, fused, fuse_layernorm=True) else given
            overrides = self._overrides(files.read(prepared))
            with refusing(_REFUSAL):
                self._quantise(prepared, made, feeds, overrides)
            quantised = files.read(made)
            pairs = sum(node.op_type == "QuantizeLinear" for node in quantised.graph.all_nodes())
            if not pairs:
                raise Refused("no operator of this graph has a quantised form")
            kept = zeros.check(before, quantised, "qdq_static") if self.weight == "int8" else None
            common.ClearMetadataAndDocStringPass()(quantised)
            files.write(quantised, out)
        why = f"{pairs} tensors quantised, ranges from {len(feeds)} calibration feeds"
        details = {"quantised": pairs, "calibrated": len(feeds), "zeros": kept}
        return Change("qdq_static", True, why, details)

    def _quantise(self, source: Path, out: Path, feeds: Sequence[Feed], overrides: _Overrides) -> None:
        config = get_qnn_qdq_config(
            source,
            calibration.FeedReader(feeds),
            calibrate_method=calibration.METHODS[self.method],
            activation_type=_TYPES[self.activation],
            weight_type=_TYPES[self.weight],
            per_channel=self.per_channel,
            init_overrides=overrides,
            nodes_to_exclude=list(self.exclude) or None,
        )
        operators = sorted(config.op_types_to_quantize)  # it comes from a set
        ranges = out.with_name("ranges.json")
        calibration.write_ranges(source, feeds, self.method, _PERCENTILE, operators, ranges)
        quantize_static(
            source,
            out,
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

    def _overrides(self, model: ir.Model) -> _Overrides:
        """What ONNX Runtime's helper would choose otherwise than the HTP library can do."""
        found: _Overrides = {}
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
    if unfit.is_quantised(model):
        return unfit.QUANTISED
    for value in model.graph.inputs:
        if value.shape is None or not value.shape.is_static():
            return (
                f"input {value.name} has dynamic axes {value.shape}; put fix_shapes before, or give the artifact shapes"
            )
    far = unfit.far_constant(model)
    return None if far is None else f"{far} and would take the range; put clamp_mask before"
