"""Runners on small real files: what ran where, what the numbers are called, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_passes_tflite import build

from edgeredux import target
from edgeredux.errors import ArtifactError, TargetError
from edgeredux.passes.onnx.qdq_static import QdqStatic
from edgeredux.passes.tflite.quantize import TfliteInt8Static
from edgeredux.readings import Missing, Reading
from edgeredux.runners.litert import Litert
from edgeredux.runners.onnxruntime_cpu import OnnxRuntimeCpu
from edgeredux.runners.qnn import Qnn
from edgeredux.runners.vela import Vela
from edgeredux.seams import Feed, PassContext, ProfileJob

# ai-edge-quantizer calibrates with an interpreter that keeps every tensor, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Warning. Enabling .experimental_preserve_all_tensors:UserWarning")

RNG = np.random.default_rng(5)
WEIGHTS = RNG.normal(size=(32, 64)).astype(np.float32) / 6


def feeds(count: int = 4) -> list[Feed]:
    return [{"x": RNG.normal(size=(1, 32)).astype(np.float32)} for _ in range(count)]


def linear(path: Path) -> Path:
    """y = Relu(x [1, 32] @ w [32, 64])."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(WEIGHTS, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def job(tmp_path: Path, artifacts: dict[str, Path], given: list[Feed], **more: Any) -> ProfileJob:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    settings: dict[str, Any] = {"options": {}, "hardware": {}, "threads": 1, "repeats": 6, "warmup": 1, **more}
    return ProfileJob(
        artifacts=artifacts,
        latency_feeds=dict.fromkeys(artifacts, given),
        quality_feeds=dict.fromkeys(artifacts, given),
        scratch=tmp_path / "scratch",
        log=tmp_path / "log.txt",
        **settings,
    )


def context(tmp_path: Path, calibration: list[Feed]) -> PassContext:
    (tmp_path / "passes").mkdir(exist_ok=True)
    return PassContext(calibration, tmp_path / "log.txt", tmp_path / "passes")


def runtime(name: str) -> target.RuntimeSection:
    return target.load(name).runtimes[0]


def test_onnxruntime_measures_interleaved_and_counts_what_ran(tmp_path: Path) -> None:
    given = feeds()
    path = linear(tmp_path / "a.onnx")
    found = OnnxRuntimeCpu().profile(job(tmp_path, {"dense": path, "reduced": path}, given))
    for profile in found.values():
        assert isinstance(profile.readings["latency_ms"], Reading)
        assert profile.readings["latency_ms"].source == "measured"
        assert "interleaved" in profile.readings["latency_ms"].how
        assert len(profile.latency_samples) == 6
        assert profile.placement.keys() == {"CPUExecutionProvider"}
        assert isinstance(profile.readings["energy_mj"], Missing)
        for feed, out in zip(given, profile.outputs or [], strict=True):
            np.testing.assert_allclose(out["y"], np.maximum(feed["x"] @ WEIGHTS, 0), atol=1e-5)


def test_litert_says_how_many_operators_its_delegate_took(tmp_path: Path) -> None:
    given = feeds()
    path = build(tmp_path / "a.tflite")
    found = Litert().profile(job(tmp_path, {"dense": path}, given))["dense"]
    assert isinstance(found.readings["latency_ms"], Reading)
    assert sum(found.placement.values()) >= 1
    assert isinstance(found.readings["memory_mb"], Reading)


@pytest.mark.parametrize("runner", [OnnxRuntimeCpu(), Litert()], ids=["onnxruntime", "litert"])
def test_a_damaged_file_and_wrong_inputs_are_one_line(runner: Any, tmp_path: Path) -> None:
    (suffix,) = runner.formats
    (tmp_path / f"bad.{suffix}").write_bytes(b"\x08\x07nothing of use")
    with pytest.raises(ArtifactError, match="bad") as told:
        runner.profile(job(tmp_path, {"dense": tmp_path / f"bad.{suffix}"}, feeds()))
    assert "\n" not in str(told.value)
    good = linear(tmp_path / "a.onnx") if suffix == "onnx" else build(tmp_path / "a.tflite")
    with pytest.raises(ArtifactError, match="'x'"):
        runner.profile(job(tmp_path, {"dense": good}, [{"x": np.zeros((1, 31), np.float32)}]))
    with pytest.raises(TargetError, match="nothing"):
        runner.check({"nothing": 1})


def test_vela_simulates_cycles_bytes_and_energy(tmp_path: Path) -> None:
    pytest.importorskip("ethosu", reason="Vela is not installed")
    given = feeds()
    source, path = build(tmp_path / "a.tflite"), tmp_path / "int8.tflite"
    assert TfliteInt8Static().run(source, path, context(tmp_path, given)).changed
    section, energy = runtime("ethos-u85-512"), target.load("ethos-u85-512").energy.model_dump(mode="json")
    found = Vela().profile(job(tmp_path, {"dense": path}, given, options=section.options, energy=energy))["dense"]
    latency, joules = found.readings["latency_ms"], found.readings["energy_mj"]
    assert isinstance(latency, Reading)
    assert latency.source == "simulated"
    assert isinstance(joules, Reading)
    assert joules.source == "estimated"
    # 32 x 64 multiply-accumulates alone at 0.23 pJ; the bytes come on top.
    assert joules.value is not None
    assert joules.value > 32 * 64 * 0.23e-9
    assert found.placement.get("NPU", 0) >= 1
    assert found.outputs_source == "simulated"
    assert found.layers
    with pytest.raises(TargetError, match="Ethos_U85_SYS_DRAM_Mid"):
        Vela().check({**section.options, "system_config": "Ethos_U85_SYS_DRAM_Middle"})


def test_vela_lists_what_stays_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("ethosu", reason="Vela is not installed")
    section = runtime("ethos-u85-512")
    path = build(tmp_path / "float.tflite")  # a float operator is none of the NPU's
    found = Vela().profile(job(tmp_path, {"dense": path}, feeds(), options=section.options))["dense"]
    assert any("FULLY_CONNECTED" in line for line in found.fallbacks)
    latency = found.readings["latency_ms"]
    assert isinstance(latency, Missing)  # what multiplies matrices is not in the estimate, so it is none of the model


def test_snapdragon_simulates_outputs_and_keeps_its_binary(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")
    given = feeds(8)
    source, path = linear(tmp_path / "a.onnx"), tmp_path / "qdq.onnx"
    assert QdqStatic().run(source, path, context(tmp_path, given)).changed
    section = runtime("snapdragon-8-gen-3")
    found = Qnn().profile(job(tmp_path, {"dense": path}, given, options=section.options))["dense"]
    assert isinstance(found.readings["latency_ms"], Missing)
    assert "device" in found.readings["latency_ms"].reason
    assert found.outputs_source == "simulated"
    assert found.placement["NPU"] >= 1
    assert any(name.endswith(".bin") for name in found.files)
    for feed, out in zip(given, found.outputs or [], strict=True):
        wanted = np.maximum(feed["x"] @ WEIGHTS, 0)
        cosine = (out["y"] * wanted).sum() / np.linalg.norm(out["y"]) / np.linalg.norm(wanted)
        assert cosine > 0.99
    with pytest.raises(ArtifactError):
        Qnn().profile(job(tmp_path, {"dense": tmp_path / "none.onnx"}, given, options=section.options))
