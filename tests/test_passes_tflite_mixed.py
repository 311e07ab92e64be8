"""Mixed precision: the search against every possible answer, and the pass on a small real file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert.schema_py_generated", reason="LiteRT is not installed")
pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")

from tflite_files import HARM, File, blocky, damaged

from edgeredux import isolated
from edgeredux.errors import ArtifactError, DataError, RecipeError
from edgeredux.execute import execute
from edgeredux.passes.tflite.mixed import TfliteMixed
from edgeredux.passes.tflite.mixed_search import search
from edgeredux.registry import create
from edgeredux.seams import PassContext

RNG = np.random.default_rng(9)


@pytest.mark.parametrize("limit", [0.5, 0.7, 0.82, 0.9, 0.97])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (1, 1, 9, 1, 1)])
def test_against_all_mixes_where_losses_add(limit: float, sizes: tuple[int, ...]) -> None:
    """Five parts whose losses add up: no mix of the two levels raises fewer bytes than the one found, but by a part."""
    loss = dict(zip("abcde", (0.10, 0.02, 0.15, 0.01, 0.05), strict=True))
    size = dict(zip("abcde", sizes, strict=True))

    def measure(levels: Mapping[str, int]) -> float:
        return 1 - sum(loss[part] for part, level in levels.items() if level == 0)

    found = search(size, 1, measure, limit)
    assert measure(found.levels) == found.agreement >= limit
    raised = sum(size[part] for part, level in found.levels.items() if level)
    mixes = (dict(zip("abcde", mix, strict=True)) for mix in itertools.product((0, 1), repeat=5))
    least = min(sum(size[part] for part in mix if mix[part]) for mix in mixes if measure(mix) >= limit)
    assert least <= raised <= least + 1


def test_a_level_for_all_before_a_level_for_one() -> None:
    agreements = {0: 0.2, 1: 0.95, 2: 1.0}

    def measure(levels: Mapping[str, int]) -> float:
        return min(agreements[level] for level in levels.values())

    found = search({"a": 1, "b": 1}, 2, measure, 0.9)
    assert found.levels == {"a": 1, "b": 1}
    assert search({"a": 1, "b": 1}, 2, measure, 0.1).tried == 1
    assert search({"a": 1}, 1, measure, 0.99).agreement == 0.95  # short of the limit, and says so


def build(path: Path) -> Path:
    """Three layers; the second has one weight that takes the range of its scale, which int4 does not survive."""
    file = File()
    given = out = file.tensor("x", [1, 64])
    for layer in range(3):
        weight = blocky(64, 64, 1, 1.0, layer)
        if layer == 1:
            weight[:, 0] = 40
        out = file.dense(out, weight)
        file.graph.tensors[out].name = f"layer{layer}".encode()
    return file.write(path, given, out)


def run(step: TfliteMixed, source: Path, out: Path, tmp_path: Path) -> Any:
    feeds = [{"x": RNG.normal(size=(1, 64)).astype(np.float32) * ([0.001] + [1] * 63)} for _ in range(8)]
    feeds = [{"x": feed["x"].astype(np.float32)} for feed in feeds]
    context = PassContext(feeds, tmp_path / "log", tmp_path)
    arguments = {"step": step, "source": source, "out": out, "context": context}
    change = isolated.call("edgeredux.rewrite:run_pass", arguments, log=context.log, what="test")["change"]
    return change, feeds


def test_the_sensitive_layer_gets_more_bits(tmp_path: Path) -> None:
    source, out = build(tmp_path / "m.tflite"), tmp_path / "out.tflite"
    change, feeds = run(TfliteMixed(levels=("int4-dynamic", "float"), limit=0.97), source, out, tmp_path)
    assert change.changed, change.why
    levels = {part["name"]: part["level"] for part in change.details["parts"]}
    assert levels["FULLY_CONNECTED layer1"] == "float"
    assert "int4-dynamic" in levels.values()
    alone = {part["name"]: part["cosine_alone"] for part in change.details["parts"]}
    assert min(alone, key=lambda name: alone[name]) == "FULLY_CONNECTED layer1"
    a, b = (np.concatenate([o["y"] for o in execute(p, feeds, log=tmp_path / "log")]) for p in (source, out))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosines.mean() == pytest.approx(change.details["cosine"], abs=1e-4)
    assert cosines.mean() >= 0.97
    assert out.stat().st_size < source.stat().st_size
    assert not (tmp_path / "tflite_mixed.tflite").exists()


def test_calibrated_levels_and_declines(tmp_path: Path) -> None:
    source = build(tmp_path / "m.tflite")
    change, _ = run(TfliteMixed(levels=("int8", "int16", "float"), limit=0.9), source, tmp_path / "a.tflite", tmp_path)
    assert change.changed, change.why
    change, _ = run(
        TfliteMixed(levels=("int4-dynamic", "int8-dynamic"), limit=1.0), source, tmp_path / "b.tflite", tmp_path
    )
    assert not change.changed
    assert change.why.startswith("declined: no mix reaches 1: all at int8-dynamic reach a cosine of 0.9")
    change, _ = run(TfliteMixed(limit=1.0), source, tmp_path / "c.tflite", tmp_path)
    assert not change.changed
    assert not (tmp_path / "c.tflite").exists()


def test_what_is_quantised_is_left_alone(tmp_path: Path) -> None:
    once, _ = run(TfliteMixed(), build(tmp_path / "in.tflite"), tmp_path / "once.tflite", tmp_path)
    assert once.changed
    again, _ = run(TfliteMixed(), tmp_path / "once.tflite", tmp_path / "twice.tflite", tmp_path)
    assert not again.changed
    assert again.why == "declined: ai-edge-quantizer changes no operator of this file; it may be quantised already"
    assert not (tmp_path / "twice.tflite").exists()


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for levels in (["int8"], ["int8", "int8"], ["int3", "float"]):
        with pytest.raises(RecipeError) as caught:
            create("pass", "tflite_mixed", {"levels": levels}, "test")
        assert "\n" not in str(caught.value)
    source = build(tmp_path / "m.tflite")
    arguments = {
        "step": TfliteMixed(),
        "source": source,
        "out": tmp_path / "o.tflite",
        "context": PassContext([], tmp_path / "log", tmp_path),
    }
    with pytest.raises(DataError, match="no calibration feeds"):
        isolated.call("edgeredux.rewrite:run_pass", arguments, log=tmp_path / "log", what="test")


@pytest.mark.parametrize("how", HARM)
def test_a_damaged_file_is_one_line(tmp_path: Path, how: str) -> None:
    source = build(tmp_path / "m.tflite")
    damaged(source, how)
    with pytest.raises(ArtifactError, match=r"m\.tflite") as caught:
        run(TfliteMixed(), source, tmp_path / "out.tflite", tmp_path)
    assert "\n" not in str(caught.value)
