"""Fused transformer operators of ONNX Runtime."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Literal

import onnx_ir.passes.common as common
from onnxruntime.transformers import optimizer
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change, Format
from edgeredux.errors import one_line
from edgeredux.passes.onnx import files
from edgeredux.seams import PassContext, Tolerance


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Fuse:
    """LayerNormalization with its residual sum, Gelu with its bias, attention where its pattern is recognised.

    Given   s = Add(x, residual); y = LayerNormalization(s); g = Gelu(Add(h, bias))
    Result  y = com.microsoft.SkipLayerNormalization(x, residual); g = com.microsoft.BiasGelu(h, bias)

    By onnxruntime.transformers.optimizer for `family`. The result has operators of the domain com.microsoft and runs
    on ONNX Runtime only: no other runtime or compiler reads it. Declines when nothing fuses.
    """

    family: Literal["bert", "gpt2", "vit", "clip", "t5", "bart"] = "bert"
    format: Format = dataclasses.field(default="onnx", init=False)
    tolerance: Tolerance = dataclasses.field(
        default=Tolerance("the same function; sums are rounded in another order", atol=1e-3, rtol=1e-3), init=False
    )

    def run(self, source: Path, out: Path, context: PassContext) -> Change:
        """The fused graph; details `fused` counts by operator. Raises ArtifactError on an unreadable file."""
        model = files.read(source)
        common.NameFixPass()(model)
        before = _contrib(files.kinds(model))
        try:
            with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
                given, made = Path(folder, "in.onnx"), Path(folder, "out.onnx")
                files.write(model, given)
                # opt_level 0: Python fusions alone; higher ones bake this machine's CPU into the file.
                fused = optimizer.optimize_model(
                    str(given), model_type=self.family, num_heads=0, hidden_size=0, opt_level=0
                )
                fused.save_model_to_file(str(made), use_external_data_format=given.with_name("in.onnx.data").exists())
                result = files.read(made)
                common.ClearMetadataAndDocStringPass()(result)
                after = _contrib(files.kinds(result))
                found = {name: n - before.get(name, 0) for name, n in sorted(after.items()) if n > before.get(name, 0)}
                if found:
                    files.write(result, out)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as problem:
            return Change("fuse", False, one_line(f"declined: ONNX Runtime's optimizer fails on it: {problem}", 300))
        if not found:
            return Change("fuse", False, f"declined: no pattern of {self.family!r} models was found")
        listed = ", ".join(f"{count} {name}" for name, count in found.items())
        return Change("fuse", True, f"{listed}; runs on ONNX Runtime only", {"fused": found})


def _contrib(kinds: dict[tuple[str, str], int]) -> dict[str, int]:
    return {name: count for (domain, name), count in kinds.items() if domain == "com.microsoft"}
