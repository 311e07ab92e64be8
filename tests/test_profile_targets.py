"""Every shipped target answers for a bundle, with readings or with reasons; readings recorded elsewhere are replayed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import Cli
from onnx import TensorProto, helper
from tiny_graphs import save

from edgeredux import records, target
from edgeredux.artifact import sha256_file
from edgeredux.errors import DataError, EnvironmentProblem
from edgeredux.readings import SOURCES, Missing, Reading
from edgeredux.runners import cuda, gpu
from edgeredux.runners.replay import Replay
from edgeredux.seams import ProfileJob

RECIPE = """
edgeredux: 1
name: graph
model: {model}
threads: 1
data: {{source: {data}, evaluation: 16, calibration: 16, training: 16}}
artifacts:
  float: {{format: onnx}}
  half: {{format: onnx, passes: [fold]}}
targets:
  host-cpu:
    onnxruntime: {{dense: float, reduced: half, budget: {{size_ratio: 1.1}}}}
measure: {{repeats: 6, warmup: 1}}
"""


def written(folder: Path, batch: int | str) -> Path:
    """A recipe for a finished graph of one layer."""
    random = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Relu", ["p"], ["y"])]
    kinds = {"x": (TensorProto.FLOAT, [batch, 16])}, {"y": (TensorProto.FLOAT, [batch, 8])}
    graph = save(folder / "g.onnx", nodes, *kinds, {"w": random.normal(size=(16, 8)).astype(np.float32)})
    np.savez(folder / "d.npz", x=random.normal(size=(400, 16)).astype(np.float32))
    said = RECIPE.format(model=json.dumps(str(graph)), data=json.dumps(str(folder / "d.npz")))
    (folder / "graph.yaml").write_text(said, encoding="utf-8")
    return folder / "graph.yaml"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That graph, profiled on this machine."""
    import edgeredux

    folder = tmp_path_factory.mktemp("graph")
    edgeredux.run(str(written(folder, "batch")), out=folder / "out")
    return folder / "out"


def copied(bundle: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_every_shipped_target_answers_in_one_table(cli: Cli, tmp_path: Path, bundle: Path) -> None:
    place = copied(bundle, tmp_path)
    done = cli("profile", place, "--target", "all", "--json")
    assert done.returncode == 1, done.stderr
    items = json.loads(done.stdout)["targets"]
    said = {item["target"]: item for item in reversed(items)}  # the first row of each
    assert set(said) == set(target.shipped())
    for item in items:
        readings = {**item["reduced"], **item["dense"]}
        assert {"latency_ms", "energy_mj", "memory_mb", "size_mb", "quality"} <= set(readings)
        for reading in readings.values():
            assert reading.get("missing", "").strip() or reading["source"] in SOURCES, item["name"]
        assert item["target"] == "host-cpu" or readings["latency_ms"].get("source") != "measured"
    assert said["host-cpu"]["reduced"]["latency_ms"]["source"] == "measured"
    assert "name the one that the device is" in said["laptop-x86"]["reduced"]["latency_ms"]["missing"]
    assert "the bundle holds onnx" in said["ethos-u85-512"]["error"]
    assert said["ethos-u85-512"]["checks"] == []
    assert said["ethos-u85-512"]["passed"] is False
    assert "no NVIDIA driver" in said["h200"]["reduced"]["latency_ms"]["missing"]
    named = cli("profile", place, "--target", "laptop-x86", "--json")
    assert named.returncode == 1
    assert "EDGEREDUX_SSH_HOST" in json.loads(named.stdout)["targets"][0]["reduced"]["latency_ms"]["missing"]
    alone = cli("profile", place, "--target", "host-cpu")
    assert alone.returncode == 0, alone.stderr
    assert cli("profile", place, "--target", "raspberry-pi-6").returncode == 2


def test_recorded_here_and_replayed_as_another_target_says(cli: Cli, tmp_path: Path, bundle: Path) -> None:
    place, file = copied(bundle, tmp_path), tmp_path / "records.json"
    done = cli("profile", place, "--record", file)
    assert done.returncode == 0, done.stderr
    assert cli("profile", place, "--record", file).returncode == 2  # never overwritten
    taken = records.read(file)
    assert {record.target for record in taken} == {"host-cpu"}
    assert taken[0].conditions == {"threads": 1, "batch": 1, "sequence": 64}
    assert "quality" not in taken[0].readings
    # A colleague who measured the same files on a Raspberry Pi 5 would send these.
    file.write_text(records.text(dataclasses.replace(record, target="raspberry-pi-5") for record in taken))
    done = cli("profile", place, "--target", "raspberry-pi-5", "--records", file, "--json")
    assert done.returncode in (0, 1), done.stderr
    item = json.loads(done.stdout)["targets"][0]
    assert item["name"] == "raspberry-pi-5:replay"
    latency = item["reduced"]["latency_ms"]
    assert latency["source"] == "replayed"
    assert (
        latency["value"]
        == next(r for r in taken if r.artifact_sha256 == item["artifact_sha256"]).readings["latency_ms"].value
    )
    assert taken[0].date in latency["how"]
    assert item["ratios"]["latency_ratio"]["how"].startswith("median of reduced / dense, round by round")
    assert "hold no outputs" in item["reduced"]["quality"]["missing"]


@pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason="Qualcomm's library is not installed")
def test_the_reason_for_a_picked_artifact_is_in_the_report(tmp_path: Path) -> None:
    import edgeredux

    recipe = written(tmp_path, 1)
    report = edgeredux.run(str(recipe), targets=["snapdragon-8-gen-3"], out=tmp_path / "out")
    item = report.targets[0]
    assert item.artifact == item.dense_artifact == "snapdragon-8-gen-3"
    passes = report.to_json()["recipe"]["artifacts"]["snapdragon-8-gen-3"]["passes"]
    assert [name for step in passes for name in step] == ["fold", "clamp_mask", "qdq_static"]
    assert item.placement["reduced"]["NPU"] > 0
    assert isinstance(item.reduced["quality"], Reading)
    assert item.reduced["quality"].source == "simulated"
    assert item.notes[0].startswith("the HTP takes static QDQ graphs: 16-bit activations and 8-bit weights")
    assert item.notes[1].startswith("offered on snapdragon-8-gen-3: structured zeros")
    assert "the HTP takes static QDQ graphs" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def job(tmp_path: Path, **changes: Any) -> ProfileJob:
    for label in ("dense", "reduced"):
        (tmp_path / f"{label}.onnx").write_bytes(label.encode())
    return ProfileJob(
        artifacts={label: tmp_path / f"{label}.onnx" for label in ("dense", "reduced")},
        latency_feeds={"dense": [], "reduced": []},
        quality_feeds={"dense": [], "reduced": []},
        options={},
        hardware={},
        threads=1,
        repeats=5,
        warmup=1,
        scratch=tmp_path / "scratch",
        log=tmp_path / "log",
        **{"target": "board", "conditions": {"threads": 1, "batch": 1, "sequence": 64}, **changes},
    )


def record(sha256: str, **changes: Any) -> records.Record:
    said = {
        "artifact_sha256": sha256,
        "target": "board",
        "runtime": "onnxruntime",
        "date": "2026-11-20",
        "host": "a board",
        "driver": "ONNX Runtime 1.32",
        "run": "r1",
        "conditions": {"threads": 1, "batch": 1, "sequence": 64},
        "readings": {"latency_ms": Reading(3.0, "ms", "measured", n=2)},
        "latency_samples": (2.9, 3.1),
    }
    return records.Record(**{**said, **changes})


def test_what_was_not_recorded_of_this_file_here_is_missing(tmp_path: Path) -> None:
    work = job(tmp_path)
    hashes = {label: sha256_file(path) for label, path in work.artifacts.items()}
    file = tmp_path / "r.json"

    def replayed(given: list[records.Record], **changes: Any) -> dict[str, Any]:
        file.write_text(records.text(given), encoding="utf-8")
        asked = dataclasses.replace(work, options={"records": [str(file)]}, **changes)
        return {label: profile.readings["latency_ms"] for label, profile in Replay().profile(asked).items()}

    both = [record(hashes["dense"]), record(hashes["reduced"], readings={"latency_ms": Reading(2, "ms", "measured")})]
    found = replayed(both)
    assert (found["dense"].value, found["dense"].source, found["reduced"].value) == (3.0, "replayed", 2.0)
    newer = record(hashes["dense"], date="2026-11-21", readings={"latency_ms": Reading(4, "ms", "measured")})
    assert replayed([newer, *both])["dense"].value == 4
    found = replayed(both[:1])
    assert isinstance(found["reduced"], Missing)
    assert "is of this file" in found["reduced"].reason
    assert "target other" in replayed(both, target="other")["dense"].reason
    said = replayed(both, conditions={"threads": 2, "batch": 1, "sequence": 64})["dense"].reason
    assert "recorded with batch 1, sequence 64, threads 1, asked for with" in said
    assert Replay().profile(dataclasses.replace(work, options={"records": [str(file)]}))["dense"].latency_samples
    apart = [both[0], dataclasses.replace(both[1], run="r2")]
    file.write_text(records.text(apart), encoding="utf-8")
    alone = Replay().profile(dataclasses.replace(work, options={"records": [str(file)]}))
    assert alone["dense"].latency_samples == ()  # two runs are not to be paired round by round


def test_only_measured_readings_count_as_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guessed = record("a" * 64, readings={"latency_ms": Reading(3.0, "ms", "estimated")})
    (tmp_path / "r.json").write_text(records.text([guessed]), encoding="utf-8")
    with pytest.raises(DataError, match="latency_ms of board is no measured reading"):
        records.read(tmp_path / "r.json")
    (tmp_path / "r.json").write_text('{"schema": 2}', encoding="utf-8")
    with pytest.raises(DataError, match="schema 2"):
        Replay().check({"records": [str(tmp_path / "r.json")]})
    monkeypatch.delenv(records.VARIABLE, raising=False)
    with pytest.raises(EnvironmentProblem, match="--records FILE"):
        Replay().check({})


Smi = Callable[[str], None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Puts a stand-in for nvidia-smi on PATH."""

    def put(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return put


def test_a_gpu_that_cannot_be_measured_says_why(smi: Smi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert "no NVIDIA driver" in str(cuda.ready(cuda.Options()))
    found = cuda.Cuda().profile(job(tmp_path))
    assert all("no NVIDIA driver" in str(reading) for reading in found["reduced"].readings.values())
    smi("echo 'NVIDIA-SMI has failed' >&2; exit 9")
    assert "finds no GPU: NVIDIA-SMI has failed" in str(cuda.ready(cuda.Options()))
    smi("echo 'NVIDIA H100 80GB HBM3, 570.86.15'")
    assert gpu.look() == gpu.Gpu("NVIDIA H100 80GB HBM3", "570.86.15")
    assert "is NVIDIA H100 80GB HBM3, not H200" in str(cuda.ready(cuda.Options(device="H200")))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EnvironmentProblem, match=r"has no TensorrtExecutionProvider .*pip install onnxruntime-gpu"):
        cuda.Cuda().check({"provider": "tensorrt"})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    cuda.Cuda().check({"device": "H100"})
    assert cuda.Cuda().device({}) == "NVIDIA H100 80GB HBM3, driver 570.86.15"


def test_two_of_four_is_timed_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels themselves need a GPU; here a copy stands in for the sparse module."""
    from edgeredux.runners import two_four_kernels
    from edgeredux.sparsity import semi_structured

    random = np.random.default_rng(0)
    weight = random.normal(size=(64, 32)).astype(np.float32)
    pruned = (weight.reshape(16, 4, 32) * np.array([1, 0, 0, 1])[:, None]).reshape(64, 32).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"], "one"), helper.make_node("MatMul", ["p", "v"], ["y"], "two")]
    kinds = {"x": (TensorProto.FLOAT, ["n", 64])}, {"y": (TensorProto.FLOAT, ["n", 8])}
    dense = random.normal(size=(32, 8)).astype(np.float32)
    path = save(tmp_path / "g.onnx", nodes, *kinds, {"w": pruned, "v": dense})
    found = {name: matrix.shape for name, matrix in two_four_kernels.matrices(path)}
    assert found == {"one": (32, 64), "two": (8, 32)}
    if semi_structured.unavailable() is not None:
        assert two_four_kernels.table(path, 4) == Missing(str(semi_structured.unavailable()))
    monkeypatch.setattr(semi_structured, "unavailable", lambda: None)

    def copied_to(module: Any) -> Any:
        why = semi_structured.misfit(module[0].weight)
        return Missing(why) if why else semi_structured.SemiStructured(module, ("0",))

    monkeypatch.setattr(semi_structured, "to_semi_structured", copied_to)
    rows = two_four_kernels.table(path, 4)
    assert isinstance(rows, list)
    assert [(row["layer"], row["shape"], row["positions"]) for row in rows] == [("one", "64 to 32", 4)]
    assert rows[0]["gain"] == pytest.approx(rows[0]["dense_us"] / rows[0]["sparse_us"])
