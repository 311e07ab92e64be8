"""Every pass, and the lists of the shipped recipes, on graphs that nobody here exported: the same function, or a reason.

Silero VAD's branches and state, YuNet of any size, MLPerf Tiny in float, QDQ and QLinear form, the examples of TFLite
Micro: all through `passes run` without --data, so that the inputs are made from the graphs' own shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SHARED
from in_process import stay

from edgeredux import made_inputs, one_pass, recipe, registry
from edgeredux.artifact import Artifact
from edgeredux.errors import ArtifactError
from edgeredux.rewrite import rewrite
from edgeredux.seams import PassContext
from edgeredux.shipping import packed

FILES = sorted(path for pattern in ("*.onnx", "*.tflite") for path in SHARED.rglob(pattern))
FAST = {"silero_vad.onnx", "kws_ref_model.onnx", "kws_ref_model_float32.tflite", "hello_world_int8.tflite"}
# The larger of two that differ in the size of their image or of their net only.
LEFT_OUT = {"yunet_n_640_640.onnx", "yunet_s_640_640.onnx", "yunet_s_320_320.onnx", "yunet_s_dynamic.onnx"}
LEFT_OUT |= {"pretrainedResnet_large_float.tflite", "pretrainedResnet_large_int8.tflite"}
# Custom operators of its own, which LiteRT refuses.
REFUSED = {"audio_preprocessor_float.tflite", "audio_preprocessor_int8.tflite"}
OPTIONS: dict[str, list[str]] = {"fix_shapes": ["shapes={batch: 1, height: 64, width: 96}"]}
OPTIONS["int8_static"] = ["most=0.02"]  # its search for values to leave in float has tests of its own


def cases() -> list[Any]:
    return [
        pytest.param(
            path,
            marks=() if path.name in FAST else pytest.mark.slow,
            id=f"{path.parents[1].name}-{path.name}",
        )
        for path in FILES
        if path.name not in LEFT_OUT
    ]


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stay(monkeypatch)


@pytest.mark.skipif(not FILES, reason="the folder of shared test data is not beside this checkout")
@pytest.mark.parametrize("source", cases())
def test_every_pass_keeps_the_function_or_says_why(tmp_path: Path, source: Path) -> None:
    for row in one_pass.names():
        name, out = row["name"], tmp_path / f"{row['name']}{source.suffix}"
        if row["format"] != source.suffix[1:]:
            continue
        if source.name in REFUSED:
            with pytest.raises(ArtifactError, match="LiteRT cannot load it"):
                one_pass.run(name, source, out, OPTIONS.get(name, []), None, tmp_path / "log")
            continue
        said = one_pass.run(name, source, out, OPTIONS.get(name, []), None, tmp_path / "log")
        print(f"{source.name} {name} {said['why']}")
        if said["changed"]:
            assert said["details"]["parity"]["passed"]
            assert said["details"]["parity"]["samples"] >= 1
            assert out.is_file()
        else:
            # What is rolled back would have been wrong: an exact pass has to know beforehand what it cannot do.
            exact = registry.find("pass", name, "passes")(**DEFAULTS.get(name, {})).tolerance.cosine is None
            assert said["why"].startswith("declined: " if exact else ("declined: ", "rolled back: ")), said["why"]
            assert len(said["why"]) > len("declined: ")
            assert not out.exists()
    packed.pack(source, tmp_path / "m.erpack")
    packed.unpack(tmp_path / "m.erpack", tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / source.name).read_bytes() == source.read_bytes()


DEFAULTS: dict[str, dict[str, Any]] = {"fix_shapes": {"shapes": {"batch": 1}}}


@pytest.mark.skipif(not FILES, reason="the folder of shared test data is not beside this checkout")
@pytest.mark.parametrize("source", [case for case in cases() if case.values[0].name not in REFUSED])
def test_the_lists_of_the_shipped_recipes(tmp_path: Path, source: Path) -> None:
    feeds, hard = made_inputs.make(source, tmp_path / "log", {})
    context = PassContext(feeds, tmp_path / "log", tmp_path)
    for number, passes in enumerate(_lists(source.suffix[1:])):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = rewrite(Artifact.of(source, "m", "reduced"), passes, context, feeds, folder)
        assert [change.step for change in made.history] == [name for name, _ in passes]
        for change in made.history:
            assert change.changed or change.why.startswith(("declined: ", "rolled back: ")), change
    assert hard or source.suffix == ".tflite" or "yunet" in source.name


def _lists(form: str) -> list[list[tuple[str, Any]]]:
    """The distinct pass lists of the shipped recipes for files of this format."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for name in recipe.shipped():
        read = recipe.load(name)
        for section in read.artifacts.values():
            if section.format == form and section.passes:
                steps = [(step, registry.create("pass", step, options, step)) for step, options in section.passes]
                found[yaml.safe_dump([[step, dict(options)] for step, options in section.passes])] = steps
    assert found
    return list(found.values())
