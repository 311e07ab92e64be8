"""int8 TFLite through ai-edge-quantizer: dynamic for CPUs, static for integer-only NPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.errors import ArtifactError, DataError, RecipeError, one_line, unknown
from edgeredux.passes.tflite import files
from edgeredux.passes.tflite.signature import with_signature
from edgeredux.passes.tflite.squares import split_squares
from edgeredux.seams import Feed, PassContext, Tolerance

_TOLERANCE = Tolerance("quantised arithmetic; this catches breakage, the budget judges quality", cosine=0.9)
_WEIGHTS = {"minmax": "MIN_MAX_UNIFORM_QUANT", "mse": "MSE", "octav": "OCTAV"}
_TABLE = "EMBEDDING_LOOKUP"
Weights = Literal["minmax", "mse", "octav"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TfliteInt8Dynamic:
    """Weights as int8, one scale an output channel; activations are quantised while running. For CPUs.

    Given   y = FULLY_CONNECTED(x, w float)
    Result  y = FULLY_CONNECTED(x, w int8 per channel): LiteRT computes it in integers, x quantised row by row

    No calibration. `weights`: how scales are chosen: minmax, or mse / octav, which clip to lose least. Declines when
    no weight was there to quantise.
    """

    weights: Weights = "minmax"
    format: Format = dataclasses.field(default="tflite", init=False)
    tolerance: Tolerance = dataclasses.field(default=_TOLERANCE, init=False)

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The quantised file; details name the int8 `weights` stored. Raises ArtifactError on an unreadable file."""
        from ai_edge_quantizer import algorithm_manager, recipe

        before = files.read(source)
        algorithm = getattr(algorithm_manager.AlgorithmName, _WEIGHTS[self.weights])
        made = recipe.dynamic_wi8_afp32(algorithm)
        return _quantise("tflite_int8_dynamic", source.read_bytes(), out, before, made, None)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TfliteInt8Static:
    """Weights and activations as integers with ranges measured on the calibration feeds. What Ethos-U takes.

    Given   y = FULLY_CONNECTED(x, w), all float
    Result  y = FULLY_CONNECTED(x int8, w int8 per channel), int8 in and out

    `activation`: int8 or int16, and `operators` says otherwise for single ones by TFLite's names ({"GELU": "int8"}).
    A transformer's residual stream has a few values that 256 steps cannot hold beside the others; MiniLM, pooled
    embeddings, cosine to float: int8 0.13 (average) or 0.58 (minmax), int16 with FULLY_CONNECTED, BATCH_MATMUL and
    GELU in int8 0.94, int16 with GELU in int8 (Ethos-U has no int16 GELU) 0.993. `ranges`: average (moving average of
    each feed's extremes, 0.95) or minmax (the extremes of all feeds). `weights`: minmax, or mse / octav, which know
    few operators and leave the rest in float. With int16 an embedding table, most of a small language model's bytes,
    is int8 and its rows come out in float: EMBEDDING_LOOKUP has no int16 form. Declines on a mask constant below -1e30,
    which takes the whole range (the exporter's mask_floor raises it). Raises DataError without calibration feeds.
    """

    activation: Literal["int8", "int16"] = "int8"
    ranges: Literal["average", "minmax"] = "average"
    operators: dict[str, Literal["int8", "int16", "float"]] = dataclasses.field(default_factory=dict)
    weights: Weights = "minmax"
    format: Format = dataclasses.field(default="tflite", init=False)
    tolerance: Tolerance = dataclasses.field(default=_TOLERANCE, init=False)

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The integer file; details: `weights`, `calibrated` feeds. Raises ArtifactError, DataError, RecipeError."""
        from ai_edge_quantizer import algorithm_manager, qtyping, recipe_manager

        before = files.read(source)
        if (mask := before.lowest_mask()) is not None:
            why = f"declined: constant {mask} is below -1e30 and would take the range; export with mask_floor"
            return Change("tflite_int8_static", False, why)
        algorithm = getattr(algorithm_manager.AlgorithmName, _WEIGHTS[self.weights])
        names = {item.value: item for item in qtyping.TFLOperationName}
        manager = recipe_manager.RecipeManager()
        bits = {"int8": 8, "int16": 16}
        manager.add_static_config(".*", names["*"], bits[self.activation], 8, algorithm_key=algorithm)
        if self.activation == "int16":
            manager.add_dynamic_config(".*", names[_TABLE], 8, algorithm_key=algorithm)
        for name, width in sorted(self.operators.items()):
            if name not in names:
                raise RecipeError(unknown("operator", name, names, "pass tflite_int8_static: operators"))
            if width == "float":
                manager.add_quantization_config(
                    ".*", names[name], algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
                )
            else:
                manager.add_static_config(".*", names[name], bits[width], 8, algorithm_key=algorithm)
        recipe = manager.get_quantization_recipe()
        content = with_signature(source.read_bytes(), source.name)
        feeds = fitting(content, source.name, context.calibration)
        if self.activation == "int16" or "int16" in self.operators.values():
            content, _ = split_squares(content)
            before = files.Contents(content, source.name)
        calibration = (feeds, self.ranges, context.threads)
        return _quantise("tflite_int8_static", content, out, before, recipe, calibration)


def _quantise(
    name: str,
    content: bytes,
    out: Path,
    before: files.Contents,
    recipe: Any,
    calibration: tuple[tuple[str, list[Feed]], str, int] | None,
) -> Change:
    from ai_edge_quantizer import calibrator, quantizer
    from ai_edge_quantizer.utils import qsv_utils

    details: dict[str, Any] = {}
    try:
        # From bytes: the quantiser then neither maps nor names the user's file.
        work = quantizer.Quantizer(bytearray(content), recipe)
        if calibration is None:
            made = work.quantize(enable_progress_bar=False, enable_progress_report=False)
        else:
            (signature, feeds), ranges, threads = calibration
            update = {"average": qsv_utils.moving_average_update, "minmax": qsv_utils.min_max_update}[ranges]
            watch = calibrator.Calibrator(content, num_threads=threads, qsv_update_func=update)
            watch.calibrate({signature: feeds}, work._recipe_manager)
            made = work.quantize(watch.get_model_qsvs(), enable_progress_bar=False, enable_progress_report=False)
            details["calibrated"] = len(feeds)
    except (ValueError, RuntimeError, NotImplementedError, KeyError, TypeError, IndexError) as problem:
        return Change(name, False, one_line(f"declined: ai-edge-quantizer cannot quantise it: {problem}", 300))
    quantised = bytes(made.quantized_model)
    after = files.Contents(quantised, out.name)
    weights = after.integer_constants() - before.integer_constants()
    if weights <= 0 and after.operators() == before.operators():
        return Change(
            name, False, "declined: no operator of this file has a quantised form, or it is quantised already"
        )
    out.write_bytes(quantised)
    return Change(name, True, f"{weights} weights to integers", {**details, "weights": weights})


def fitting(content: bytes, file: str, calibration: Sequence[Feed]) -> tuple[str, list[Feed]]:
    """The first signature of these bytes and the calibration feeds as it takes them; `file` is for messages."""
    from ai_edge_litert.interpreter import Interpreter

    if not calibration:
        raise DataError("pass tflite_int8_static: there are no calibration feeds")
    try:
        interpreter = Interpreter(model_content=content)
        signatures = interpreter.get_signature_list()
        key = next(iter(signatures))
        wanted = interpreter.get_signature_runner(key).get_input_details()
    except (ValueError, RuntimeError) as problem:
        raise ArtifactError(one_line(f"{file}: LiteRT cannot load it: {problem}", 300)) from problem
    feeds = []
    for feed in calibration:
        row: dict[str, np.ndarray[Any, Any]] = {}
        for name, item in wanted.items():
            if name not in feed:
                raise DataError(
                    f"pass tflite_int8_static: the calibration feeds have no input {name!r}: {sorted(feed)}"
                )
            if tuple(feed[name].shape) != tuple(item["shape"]):
                shape = tuple(int(size) for size in item["shape"])
                raise DataError(
                    f"pass tflite_int8_static: calibration input {name} is {feed[name].shape}, the file wants {shape}"
                )
            row[name] = feed[name].astype(item["dtype"])
        feeds.append(row)
    return key, feeds
