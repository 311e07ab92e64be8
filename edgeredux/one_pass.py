"""One pass on one file, apart from any recipe: `edgeredux passes run NAME in.onnx out.onnx`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeredux import graph_source, made_inputs, registry
from edgeredux.artifact import Artifact
from edgeredux.errors import ArtifactError, DataError, RecipeError, StorageError, one_line
from edgeredux.rewrite import rewrite
from edgeredux.seams import Feed, PassContext


def names() -> list[dict[str, str]]:
    """Every pass: name, format, and what it does in one line."""
    rows = []
    for name in sorted(registry.table("pass")):
        found = registry.find("pass", name, "passes")
        place = registry.table("pass")[name]
        kind = "onnx" if ".onnx." in place else "tflite"
        rows.append(
            {"name": name, "format": kind, "description": " ".join((found.__doc__ or "").split("\n\n")[0].split())}
        )
    return rows


def run(name: str, source: Path, out: Path, settings: Sequence[str], data: Path | None, log: Path) -> dict[str, Any]:
    """Apply the pass and prove it: {"changed", "why", "details"}. `out` is written only where something changed.

    The outputs of both files are compared on the arrays of `data` (an .npz by input name), or on inputs made for the
    graph (made_inputs.py), hard ones among them where the pass is exact.
    Raises RecipeError, ArtifactError, DataError, StorageError.
    """
    step = registry.create("pass", name, dict(_setting(text) for text in settings), f"pass {name}")
    artifact = Artifact.of(source, source.stem, "reduced")
    if artifact.format != step.format or out.suffix != source.suffix:
        raise ArtifactError(f"pass {name} rewrites .{step.format} files: {source.name} to {out.name} does not fit")
    for path in (out, out.with_name(out.name + ".data")):
        if path.exists():
            raise StorageError(f"{path}: is there already; nothing was overwritten, name another file")
    if not out.parent.is_dir():
        raise StorageError(f"{out.parent}: there is no such folder")
    feeds, hard = (_given(data), []) if data is not None else made_inputs.make(source, log, getattr(step, "shapes", {}))
    if step.tolerance.cosine is not None:
        hard = []  # what lies far from all calibration inputs is no measure of a quantisation
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".edgeredux-") as place:
        context = PassContext(feeds, log, Path(place))
        made = rewrite(artifact, [(name, step)], context, [*feeds, *hard], Path(place))
        change = made.history[-1]
        if change.changed:
            _move(made.path, out)
    return {"changed": change.changed, "why": change.why, "details": change.details}


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {text}: it must read option=value")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as problem:
        raise RecipeError(one_line(f"--set {text}: the value is no YAML: {problem}", 200)) from problem


def _given(data: Path) -> list[Feed]:
    import numpy as np

    try:
        with np.load(data, allow_pickle=False) as arrays:
            return [{str(name): arrays[name] for name in arrays.files}]
    except (OSError, ValueError, EOFError, AttributeError) as problem:
        raise DataError(one_line(f"{data}: no readable .npz file: {problem}", 300)) from problem


def _move(made: Path, out: Path) -> None:
    """Bring the file to its place, its external weights beside it under its own name."""
    beside = made.with_name(made.name + ".data")
    if beside.is_file():
        import onnx

        model = onnx.load(str(made), load_external_data=False)
        for tensor in graph_source.tensors(model.graph):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = out.name + ".data"
        onnx.save(model, str(made))
        shutil.move(beside, out.with_name(out.name + ".data"))
    shutil.move(made, out)
