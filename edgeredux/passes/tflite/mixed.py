"""Mixed precision for TFLite: as few bits as measured error allows, operator by operator."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux import parity
from edgeredux.artifact import Change, Format
from edgeredux.errors import ArtifactError, DataError, one_line
from edgeredux.execute import run_tflite
from edgeredux.passes.tflite import files, packing
from edgeredux.passes.tflite.mixed_search import search
from edgeredux.passes.tflite.operators import check, name_of
from edgeredux.passes.tflite.quantize import fitting
from edgeredux.passes.tflite.signature import with_signature
from edgeredux.seams import Feed, PassContext, Tolerance

NAME = "tflite_mixed"
Level = Literal["int4-dynamic", "int8-dynamic", "int8", "int16", "float"]
_STATIC = {"int8": 8, "int16": 16}  # bits of activations; weights have 8
_DYNAMIC = {"int4-dynamic": 4, "int8-dynamic": 8}  # bits of weights; activations are quantised while running
_FEEDS = 8
_TABLES = ("EMBEDDING_LOOKUP",)
_WEIGHTED = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "EMBEDDING_LOOKUP", "BATCH_MATMUL")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TfliteMixed:
    """Each operator at the lowest of `levels` that the outputs bear: int4, int8, int16 or float, chosen by measuring.

    Given   y = FULLY_CONNECTED(x, w float), all operators float
    Result  y = FULLY_CONNECTED(x, w int4), the most sensitive ones at the next of `levels`

    `levels`, lowest first: int4-dynamic, int8-dynamic (weights, for CPUs), int8, int16 (activations too, calibrated,
    weights int8), float. Operators with weights of their own are parts of the choice each; others, which only int8
    and int16 quantise, go by kind. Found by search (mixed_search.py): a part is tried alone, those that lose most are
    raised first, until the mean cosine of every output to the given file is `limit` on the calibration feeds (the first
    8). Details: `levels` counted, `cosine` reached, `parts` with what each loses alone, `tried` files. Declines where
    nothing is quantised or no mix reaches the limit. Raises DataError without feeds, ArtifactError on unreadable files.
    """

    levels: tuple[Level, ...] = ("int8-dynamic", "float")
    limit: float = Field(default=0.99, gt=0, le=1)
    format: Format = dataclasses.field(default="tflite", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("quantised arithmetic; the pass's own limit is stricter", cosine=0.9), init=False
    )

    def __post_init__(self) -> None:
        if len(self.levels) < 2 or len(set(self.levels)) < len(self.levels):
            raise ValueError(
                f"levels: at least two different ones, lowest first, not {', '.join(self.levels) or 'none'}"
            )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The mixed file, or why there is none."""
        before = files.read(source)
        work = _Work(source, self.levels, context)
        if not work.parts:
            return Change(NAME, False, "declined: no operator of this file has a quantised form")
        if set(self.levels) & set(_STATIC) and (mask := before.lowest_mask()) is not None:
            why = f"declined: constant {mask} is below -1e30 and would take the range; export with mask_floor"
            return Change(NAME, False, why)
        try:
            found = search(work.sizes, len(self.levels) - 1, work.agreement, self.limit)
        except (ValueError, RuntimeError, NotImplementedError, KeyError, TypeError, IndexError) as problem:
            return Change(NAME, False, one_line(f"declined: ai-edge-quantizer cannot quantise it: {problem}", 300))
        counts = Counter(self.levels[level] for level in found.levels.values())
        told = {
            "levels": dict(counts),
            "cosine": round(found.agreement, 6),
            "limit": self.limit,
            "tried": found.tried,
            "parts": [
                {"name": part, "level": self.levels[level]}
                | ({"cosine_alone": round(found.alone[part], 6)} if part in found.alone else {})
                for part, level in found.levels.items()
            ],
        }
        if found.agreement < self.limit:
            best = f"all at {self.levels[-1]} reach a cosine of {found.agreement:.4f}"
            return Change(NAME, False, f"declined: no mix reaches {self.limit:g}: {best}", told)
        if counts["float"] == len(found.levels):
            return Change(NAME, False, f"declined: no operator can be quantised at a limit of {self.limit:g}", told)
        content = work.quantised(found.levels)
        made = files.Contents(content, out.name)
        if made.integer_constants() <= before.integer_constants() and made.operators() == before.operators():
            why = "declined: ai-edge-quantizer changes no operator of this file; it may be quantised already"
            return Change(NAME, False, why, told)
        out.write_bytes(content)
        mix = ", ".join(f"{counts[level]} {level}" for level in self.levels if counts[level])
        return Change(NAME, True, f"{mix}; cosine {found.agreement:.4f} to the given file", told)


class _Work:
    """A file's parts, and the file with its parts at given levels."""

    def __init__(self, source: Path, levels: Sequence[Level], context: PassContext) -> None:
        if not context.calibration:
            raise DataError(f"pass {NAME}: there are no calibration feeds")
        content = source.read_bytes()
        self.content = with_signature(content, source.name) if set(levels) & set(_STATIC) else content
        self.name, self.levels, self.context = source.name, levels, context
        self.feeds = list(context.calibration[:_FEEDS])
        self.parts, self.sizes = _parts(self.content, source.name, with_others=bool(set(levels) & set(_STATIC)))
        self.expected = run_tflite(str(source), self.feeds, context.threads)
        self._statistics: Any = None
        self._seen: dict[tuple[int, ...], float] = {}

    def agreement(self, levels: Mapping[str, int]) -> float:
        """The lowest mean cosine of an output to the given file's; -1 where the file does not run or is not finite."""
        key = tuple(levels[part] for part in self.parts)
        if key not in self._seen:
            content = self.quantised(levels)
            try:
                outputs = self._outputs(content)
            except ArtifactError:  # the quantiser writes files that LiteRT refuses, of some operators
                self._seen[key] = -1.0
                return -1.0
            said = parity.compare(self.expected, outputs, Tolerance("search", cosine=-1.0))
            cosine = said["mean_cosine"]
            self._seen[key] = -1.0 if cosine is None else float(cosine)
        return self._seen[key]

    def quantised(self, levels: Mapping[str, int]) -> bytes:
        """The file by ai-edge-quantizer."""
        from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe_manager

        kinds = {item.value: item for item in qtyping.TFLOperationName}
        none = algorithm_manager.AlgorithmName.NO_QUANTIZE
        manager = recipe_manager.RecipeManager()
        for part, level in levels.items():
            chosen = self.levels[level]
            for kind, scope in self.parts[part]:
                if chosen in _STATIC and kind not in _TABLES:
                    try:
                        manager.add_static_config(scope, kinds[kind], _STATIC[chosen], 8)
                    except ValueError:  # this kind has no form of these bits: it stays float
                        manager.add_quantization_config(scope, kinds[kind], algorithm_key=none)
                elif chosen != "float":  # a table's rows come out in float whatever the rest is
                    manager.add_dynamic_config(scope, kinds[kind], _DYNAMIC.get(chosen, 8))
                else:
                    manager.add_quantization_config(scope, kinds[kind], algorithm_key=none)
        recipe = manager.get_quantization_recipe()
        work = quantizer.Quantizer(bytearray(self.content), recipe)
        quiet = {"enable_progress_bar": False, "enable_progress_report": False}
        if not work.need_calibration:
            return bytes(work.quantize(**quiet).quantized_model)
        return bytes(work.quantize(self._calibrated(), **quiet).quantized_model)

    def _calibrated(self) -> Any:
        """Ranges of all tensors, taken once: of the smallest and largest value in any feed."""
        from ai_edge_quantizer import calibrator, qtyping, recipe_manager
        from ai_edge_quantizer.utils import qsv_utils

        if self._statistics is None:
            manager = recipe_manager.RecipeManager()
            manager.add_static_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, 8, 8)
            signature, feeds = fitting(self.content, self.name, self.context.calibration)
            watch = calibrator.Calibrator(
                self.content, num_threads=self.context.threads, qsv_update_func=qsv_utils.min_max_update
            )
            watch.calibrate({signature: feeds}, manager)
            self._statistics = watch.get_model_qsvs()
        return self._statistics

    def _outputs(self, content: bytes) -> list[Feed]:
        path = self.context.scratch / f"{NAME}.tflite"
        path.write_bytes(content)
        try:
            return run_tflite(str(path), self.feeds, self.context.threads)
        finally:
            path.unlink()


def _parts(content: bytes, name: str, with_others: bool) -> tuple[dict[str, list[tuple[str, str]]], dict[str, int]]:
    """(operator kind, scope expression) and weight bytes by part.

    A part is an operator with a constant weight, or all operators of a kind that have none.
    """
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    model = packing.load(content, name)
    check(model, name)
    known = {item.value for item in qtyping.TFLOperationName}
    found: dict[str, list[tuple[str, str]]] = {}
    sizes: dict[str, int] = {}
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            kind = name_of(model, operator)
            if kind not in known:
                continue
            scope = tfl_flatbuffer_utils.get_op_scope(operator, graph.tensors)
            tensors = [graph.tensors[index] for index in operator.inputs if index >= 0]
            size = sum(_bytes(model, tensor) for tensor in tensors if np.size(tensor.shape) > 1)
            if kind in _WEIGHTED and size:
                part = f"{kind} {scope.rstrip(';')}"
            elif with_others and kind not in _WEIGHTED:
                part, size = f"every {kind}", 0
            else:
                continue
            found.setdefault(part, []).append((kind, f"^{re.escape(scope)}$"))
            sizes[part] = sizes.get(part, 0) + size
    return found, sizes


def _bytes(model: Any, tensor: Any) -> int:
    data = model.buffers[tensor.buffer].data
    return 0 if data is None else len(data)
