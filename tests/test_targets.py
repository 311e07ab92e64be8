"""Target files, energy models and what doctor says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import Cli

from edgeredux import target, target_check, target_schema
from edgeredux.measure import Activity, energy
from edgeredux.meters.model import EnergyModel
from edgeredux.meters.zeus_rapl import ZeusCpu
from edgeredux.readings import Missing, Reading


@pytest.mark.parametrize("name", sorted(target.shipped()))
def test_a_shipped_target_is_complete_and_fits_the_schema(name: str) -> None:
    found = target.load(name)
    assert found.name == name
    assert target_check.problems(found) == []
    said = target.shipped()[name].read_text(encoding="utf-8")
    assert said.startswith("# yaml-language-server: $schema=../schemas/target.schema.json\n")
    jsonschema.validate(yaml.safe_load(said), json.loads(target_schema.SCHEMA_FILE.read_text(encoding="utf-8")))


def test_there_are_the_targets_that_are_promised() -> None:
    wanted = {
        *("raspberry-pi-4", "raspberry-pi-5", "pixel-8-cpu", "galaxy-s24-cpu", "galaxy-s24-npu", "galaxy-s25-npu"),
        *("snapdragon-8-elite", "dragonwing-iq-9075", "ethos-u55-128", "ethos-u65-512", "ethos-u85-512"),
        *("ethos-u85-2048", "nucleo-l4r5zi", "jetson-orin-nano", "jetson-agx-orin", "laptop-x86", "server-x86"),
        *("h200", "host-cpu"),
    }
    assert wanted <= set(target.shipped())
    assert len(target.shipped()) >= 20


def test_the_shipped_schema_is_the_code_s(cli: Cli) -> None:
    assert target_schema.SCHEMA_FILE.read_text(encoding="utf-8") == target_schema.text(), (
        "write it anew: edgeredux targets schema > edgeredux/schemas/target.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(target_schema.schema())


def broken(**changes: Any) -> list[str]:
    """What is found in the Raspberry Pi 5's file with these parts of it replaced."""
    said = yaml.safe_load(target.shipped()["raspberry-pi-5"].read_text(encoding="utf-8"))
    return target_check.problems(target.Target.model_validate({**said, **changes}))


def test_what_a_file_leaves_unproven_is_named() -> None:
    figure = {"value": 17, "unit": "GB/s", "source": "hearsay"}
    unknown = dict.fromkeys(("isa", "cores", "peak", "caches", "memory"), "not read")
    assert broken(hardware={"bandwidth": {"dram": figure}, "unknown": unknown}) == [
        "hardware.bandwidth.dram: source 'hearsay' is no name of a line under sources"
    ]
    assert broken(hardware={"unknown": {**unknown, "bandwidth": " "}}) == [
        "hardware.bandwidth: neither said nor, under unknown, why not"
    ]
    rules = [{"pattern": name, "pays": False, "source": "s"} for name in ("structured", "2:4")]
    unsold = "picks.causal-lm: no rule says that the pattern it offers, structured, pays"
    assert unsold in broken(sparsity=rules)
    assert "sparsity: no rule says whether unstructured zeros pay" in broken(sparsity=rules)
    line = {"name": "bcm2712", "figure": "f", "url": "ftp:/x", "date": "yesterday"}
    found = broken(sources=[line])
    assert "sources.bcm2712: 'ftp:/x' is no URL" in found
    assert "sources.bcm2712: date 'yesterday' is no YYYY-MM-DD" in found
    assert broken(energy={}) == ["energy: neither a meter nor a model, and unknown does not say why"]
    wrong = [{"runner": "ssh", "format": "onnx", "options": {"hots": "x"}}]
    assert any("unknown option 'hots'" in line for line in broken(runtimes=wrong))


def test_an_unproven_figure_is_exit_code_1(cli: Cli, tmp_path: Path) -> None:
    text = target.shipped()["raspberry-pi-5"].read_text(encoding="utf-8")
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace("value: 17, unit: GB/s, source: bcm2712", "value: 17, unit: GB/s, source: hearsay"))
    done = cli("targets", "check", "host-cpu", mine)
    assert done.returncode == 1
    assert done.stdout.startswith("target host-cpu: complete")
    assert done.stderr == (
        "target raspberry-pi-5: hardware.bandwidth.dram: source 'hearsay' is no name of a line under sources\n"
    )
    assert cli("targets", "check", mine, tmp_path / "none.yaml").returncode == 2


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
