"""Target files, energy models and what doctor says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import Cli

from edgeredux import target
from edgeredux.measure import Activity, energy
from edgeredux.meters.model import EnergyModel
from edgeredux.meters.zeus_rapl import ZeusCpu
from edgeredux.readings import Missing, Reading


@pytest.mark.parametrize("name", sorted(target.shipped()))
def test_every_figure_of_a_shipped_target_has_a_source(name: str) -> None:
    found = target.load(name)
    assert found.name == name
    assert found.runtimes
    for figure in found.hardware.values():
        assert figure["source"]
    for line in found.sources:
        assert line.url.startswith("https://")
    for rule in found.sparsity:
        assert rule.source


def test_a_target_of_ones_own(cli: Cli, tmp_path: Path) -> None:
    said = yaml.safe_load(target.shipped()["host-cpu"].read_text(encoding="utf-8"))
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({**said, "name": "mine"}), encoding="utf-8")
    assert cli("targets", "check", mine).returncode == 0
    mine.write_text(yaml.safe_dump({**said, "name": "mine", "runtims": []}), encoding="utf-8")
    wrong = cli("targets", "check", mine)
    assert wrong.returncode == 2
    assert "runtimes" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1
    assert cli("targets", "show", "ethos-u85-513").returncode == 2


def test_a_format_that_the_runner_does_not_take_is_refused(cli: Cli, tmp_path: Path) -> None:
    said = yaml.safe_load(target.shipped()["host-cpu"].read_text(encoding="utf-8"))
    mine, out = tmp_path / "mine.yaml", tmp_path / "out"
    runtimes = [{"runner": "onnxruntime", "format": "tflite"}]
    mine.write_text(yaml.safe_dump({**said, "name": "mine", "runtimes": runtimes}), encoding="utf-8")
    done = cli("run", "quickstart", "--target", mine, "--out", out)
    assert done.returncode == 2
    assert "runner onnxruntime takes onnx, not tflite" in done.stderr
    assert not out.exists()


def test_energy_model_against_the_formula() -> None:
    coefficients = {
        "pj_per_mac": {"int8": {"value": 0.23, "source": "s"}},
        "pj_per_byte": {"dram": {"value": 162.5, "source": "s"}},
        "static_mw": {"value": 100, "source": "s"},
    }
    activity = Activity({"int8": 1e9}, {"dram": 2e6}, latency_ms=5.0)
    found = energy({"meter": [], "model": coefficients}, None, 1, activity)
    assert isinstance(found, Reading)
    assert found.source == "estimated"
    # 1e9 x 0.23 pJ + 2e6 x 162.5 pJ + 100 mW x 5 ms, in mJ
    assert found.value == pytest.approx(0.23 + 0.325 + 0.5, rel=1e-9)
    other = EnergyModel(**{**coefficients, "activity": Activity({"int16": 1.0}, {}, 1.0)}).energy_mj(None, 1)
    assert isinstance(other, Missing)
    assert "int16" in other.reason


def test_a_meter_that_is_not_there_says_why() -> None:
    reason = ZeusCpu().available()
    found = energy({"meter": ["zeus"], "model": None}, lambda: None, 1, Missing("nothing counted"))
    if reason is None:
        assert isinstance(found, Reading | Missing)
    else:
        assert isinstance(found, Missing)
        assert reason in found.reason


def test_doctor_names_the_command_for_everything_missing(cli: Cli) -> None:
    done = cli("doctor", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    names = {row["name"] for row in rows}
    assert {"ONNX Runtime", "LiteRT", "Vela (Arm Ethos-U)", "Snapdragon HTP"} <= names
    for row in rows:
        if row["status"] == "missing" and row["kind"] in ("runtime", "exporter", "compiler", "simulator", "tool"):
            assert row["install"], row
