"""Static quantisation for any runtime that reads QDQ graphs, with the few activations that cannot bear it left out."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxruntime.quantization import QuantType, quantize_static
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.parity import token_masks
from edgeredux.passes.onnx import calibration, files, unfit, zeros
from edgeredux.passes.onnx.clamp_mask import ClampMasks
from edgeredux.passes.onnx.int8_rows import Int8Rows
from edgeredux.passes.onnx.qdq_judge import Judge
from edgeredux.passes.onnx.qdq_pairs import Restored, pairs, restore
from edgeredux.passes.onnx.qdq_search import Search
from edgeredux.passes.onnx.refusal import Refused, declining, refusing
from edgeredux.seams import Feed, PassContext, Tolerance

_TYPES = {"uint8": QuantType.QUInt8, "uint16": QuantType.QUInt16}
_MASK_FLOOR = -40.0
_ROW_NODES = ("_row_int8", "_row_scale", "_row_cast", "_row")  # what Int8Rows names its own: integers already
_CHANNELS_OPSET = 13  # DequantizeLinear got its axis
_HELD = 8  # feeds at most that errors are measured on


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Int8Static:
    """Ranges measured on the calibration feeds, weights int8, and what spoils the outputs found and left out.

    Given   y = MatMul(x, w)
    Result  y = DQ(Q(MatMul(DQ(Q(x)), DQ(wq))))                  but for values whose measured error is too large

    By ONNX Runtime's quantize_static. `activation`: uint8 or uint16; weights are symmetric int8 (zeros stay zeros,
    checked), one scale an output channel with `per_channel`. `method`: minmax, entropy or percentile (of `percentile`
    %). Attention masks of -3.4e38 are raised to -40 first: they would take the whole range. `cosine`: least mean cosine
    of the outputs to the float graph's, on calibration feeds kept out of the ranges (a single feed serves both); where
    all activations quantised miss it, the worst ones, by the error each makes alone, become `restore` (float, or
    uint16), at most the share `most` of them (qdq_search.py). 0: no search. `operators`: only these types; empty: all
    that have a quantised form. `exclude`: names of nodes. `embeddings`: tables as int8 with one scale a row
    (int8_rows.py), whose rows come out in float; else as the activation's type with one scale for the whole table. For
    the Snapdragon NPU take qdq_static, which knows its rules.
    """

    activation: Literal["uint8", "uint16"] = "uint8"
    per_channel: bool = True
    embeddings: bool = True
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: float = Field(default=99.99, gt=50, le=100)
    cosine: float = Field(default=0.99, ge=0, lt=1)
    restore: Restored = "float"
    most: float = Field(default=0.25, ge=0, le=1)
    operators: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("quantised arithmetic; this catches breakage, `cosine` and the budget judge", cosine=0.9),
        init=False,
    )

    @declining("int8_static")
    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The QDQ graph; details: `quantised` activations, `restored` ones with their errors, `cosine` before and
        after on `held` feeds, `calibrated` feeds, `masks`, `zeros`. Raises ArtifactError, DataError.
        """
        model = files.read(source)
        if self.per_channel and model.opset_imports.get("", 0) < _CHANNELS_OPSET:
            with refusing(f"opset {_CHANNELS_OPSET} brought a scale a channel, and ONNX cannot convert it"):
                model = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), _CHANNELS_OPSET))
        common.NameFixPass()(model)
        masks = ClampMasks(_MASK_FLOOR)
        masks(model)
        if (problem := self._unfit(model)) is not None:
            raise Refused(problem)
        feeds = calibration.fitting(model, context.calibration, "int8_static")
        held = feeds[-max(1, min(_HELD, len(feeds) // 4)) :]
        ranged = feeds[: -len(held)] or feeds
        before = zeros.places(model)
        tables = Int8Rows()
        if self.embeddings:
            tables(model)
        apart = [str(node.name) for node in model.graph if str(node.name).endswith(_ROW_NODES)]
        with tempfile.TemporaryDirectory(dir=context.scratch) as name:
            folder = Path(name)
            files.write(model, folder / "in.onnx")
            with refusing("ONNX Runtime cannot quantise it"):
                self._quantise(folder / "in.onnx", folder / "all.onnx", ranged, apart)
            judge = Judge(folder, held, token_masks(context.calibration[-len(held) :]), context.threads)
            count = len(pairs(files.read(folder / "all.onnx"), judge.floats))
            if not count:
                raise Refused("no operator of this graph has a quantised form")
            search, chosen = self._search(judge, count)
            if chosen is None:
                why = f"cosine {search.before:.4f}, and restoring {search.most} of {count} values does not"
                return Change("int8_static", False, f"declined: {why} reach {self.cosine:g}", _errors(search))
            made = files.read(folder / "all.onnx")
            found = pairs(made, judge.floats)
            restored: list[dict[str, Any]] = [
                {"tensor": found[place].name, "operator": found[place].operator, "error": search.errors[place]}
                for place in sorted(chosen, key=lambda place: (-search.errors[place], place))
            ]
            restore(made, judge.floats, chosen, self.restore)
            kept = zeros.check(before, made, "int8_static")
            common.TopologicalSortPass()(made)  # the quantiser does not see what a branch reads
            common.ClearMetadataAndDocStringPass()(made)
            files.write(made, out)
        details = {
            "quantised": count - len(restored),
            "restored": restored,
            "cosine": {"before": search.before, "after": search.after, "held": len(held)},
            "calibrated": len(ranged),
            "tables": len(tables.tables),
            "masks": masks.clamped,
            "zeros": kept,
        }
        why = f"{count - len(restored)} of {count} values quantised, cosine {search.after:.4f}"
        why += f" ({search.before:.4f} with the {len(restored)} others)" if restored else ""
        return Change("int8_static", True, f"{why}, ranges from {len(ranged)} calibration feeds", details)

    def _unfit(self, model: ir.Model) -> str | None:
        if unfit.is_quantised(model):
            return unfit.QUANTISED
        unknown = unfit.unknown_node(model, self.exclude) or unfit.unknown_operator(model, self.operators, "operators")
        if unknown is not None:
            return unknown
        far = unfit.far_constant(model)
        return None if far is None else f"{far}, masks no Softmax and would take the range"

    def _quantise(self, source: Path, out: Path, feeds: Sequence[Feed], apart: Sequence[str]) -> None:
        operators, ranges = sorted(self.operators) or _quantisable(), out.with_name("ranges.json")
        calibration.write_ranges(source, feeds, self.method, self.percentile, operators, ranges)
        quantize_static(
            source,
            out,
            calibration_cache_path=ranges,
            op_types_to_quantize=operators,
            per_channel=self.per_channel,
            activation_type=_TYPES[self.activation],
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*self.exclude, *apart],
            use_external_data_format=source.with_name(source.name + ".data").exists(),
            calibrate_method=calibration.METHODS[self.method],
            extra_options={
                "WeightSymmetric": True,
                "ActivationSymmetric": False,
                "QDQKeepRemovableActivations": True,  # a Relu that its quantisation stood for would be lost with it
                "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
            },
        )

    def _search(self, judge: Judge, count: int) -> tuple[Search, list[int] | None]:
        search = Search(judge.probed(self.restore), count, self.cosine, int(self.most * count))
        chosen = search.run() if self.cosine else []
        while chosen is not None:
            # The probe computes in float; the file itself, with integer products, has the last word.
            search.after = judge.cosine_of_file(chosen, self.restore)
            if not chosen:
                search.before = search.after
            if search.after >= self.cosine or not self.cosine:
                break
            more = search.next(chosen)
            chosen = None if more is None else [*chosen, more]
        return search, chosen


def _quantisable() -> list[str]:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QDQRegistry, *QLinearOpsRegistry})


def _errors(search: Search) -> dict[str, Any]:
    return {"cosine": {"before": search.before, "after": None}, "errors": sorted(search.errors, reverse=True)[:20]}
