"""report.schema.json says what the contract says: good reports pass, and each way of lying is caught."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from report_samples import SAMPLES, failing, missing_heavy, passing

from edgeredux.report import METRICS, Report, schema, validate


def minimal() -> dict[str, Any]:
    """The smallest report that the contract allows: only the keys it names."""
    sha = "0" * 64
    reading = {
        "value": 1.5,
        "unit": "ms",
        "source": "replayed",
        "n": 3,
        "p10": 1.4,
        "p90": 1.7,
        "how": "log of a phone",
    }
    profile = {name: {"missing": "not taken"} for name in METRICS} | {"latency_ms": reading}
    check = {"name": "latency_ms", "limit": 2, "reading": reading, "passed": True}
    return {
        "schema": 1,
        "passed": True,
        "model": {"name": "m", "source": "m", "sha256": sha, "task": "generic"},
        "recipe": {"name": "r", "sha256": sha},
        "artifacts": [{"name": "a", "format": "onnx", "path": "reduced/a.onnx", "sha256": sha, "size_bytes": 1, "history": [], "parity": {"passed": True}}],
        "targets": [{"name": "t", "artifact_sha256": sha, "dense": profile, "reduced": profile, "checks": [check]}],
        "environment": {"edgeredux": "0.1", "python": "3.11", "packages": {}},
    }  # fmt: skip


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("name", SAMPLES)
def test_reports_are_valid(name: str) -> None:
    validate(json.loads(json.dumps(SAMPLES[name]().to_json())))


@pytest.mark.parametrize("stage", ["reduced", "exported"])
def test_a_report_of_an_earlier_stage_is_valid(stage: Any) -> None:
    full = passing()
    early = Report(stage, full.model, full.recipe, full.artifacts, (), full.steps, full.environment, full.data, {})
    validate(early.to_json())
    assert early.to_json()["passed"] is False


def test_the_keys_the_contract_names_are_enough_and_more_are_allowed() -> None:
    validate(minimal())
    more = minimal()
    more["targets"][0]["dense"]["agreement_top1"] = {"missing": "one text"}
    more["targets"][0]["colour"] = "green"
    more["artifacts"][0]["licence"] = "MIT"
    more["later"] = {"anything": 1}
    validate(more)


def at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Put `value` at a place."""

    def change(report: dict[str, Any]) -> None:
        place: Any = report
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


def without(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Take a key away."""

    def change(report: dict[str, Any]) -> None:
        place: Any = report
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return change


LATENCY = ("targets", 0, "reduced", "latency_ms")
CHECK = ("targets", 0, "checks", 0)
LIES = {
    "value that is a word": at(*LATENCY, "value", value="unknown"),
    "value that is null": at(*LATENCY, "value", value=None),
    "value that is true": at(*LATENCY, "value", value=True),
    "bare number": at(*LATENCY, value=0),
    "null for unknown": at(*LATENCY, value=None),
    "0 without a source": at(*LATENCY, value={"value": 0, "unit": "ms", "n": 1, "p10": None, "p90": None, "how": ""}),
    "no source": without(*LATENCY, "source"),
    "invented source": at(*LATENCY, "source", value="guessed"),
    "no unit": without(*LATENCY, "unit"),
    "empty unit": at(*LATENCY, "unit", value=""),
    "seconds called milliseconds": at(*LATENCY, "unit", value="s"),
    "no n": without(*LATENCY, "n"),
    "n of 0": at(*LATENCY, "n", value=0),
    "n of 1.5": at(*LATENCY, "n", value=1.5),
    "no how": without(*LATENCY, "how"),
    "p10 that is a word": at(*LATENCY, "p10", value="low"),
    "reading and missing at once": at(*LATENCY, "missing", value="why"),
    "missing without a reason": at(*LATENCY, value={"missing": ""}),
    "missing with a blank reason": at(*LATENCY, value={"missing": "  "}),
    "missing that is true": at(*LATENCY, value={"missing": True}),
    "missing with a number beside": at(*LATENCY, value={"missing": "no meter", "value": 0}),
    "unknown key in a reading": at(*LATENCY, "confidence", value=0.9),
    "interval of one end": at(*LATENCY, "ci95", value=[1.0]),
    "noisy that is false": at(*LATENCY, "noisy", value=False),
    "profile without energy": without("targets", 0, "dense", "energy_mj"),
    "profile without quality": without("targets", 0, "reduced", "quality"),
    "another metric that is a bare number": at("targets", 0, "dense", "agreement_top1", value=0.9),
    "check without passed": without(*CHECK, "passed"),
    "check without limit": without(*CHECK, "limit"),
    "check without reading": without(*CHECK, "reading"),
    "check whose limit is a word": at(*CHECK, "limit", value="5 ms"),
    "check that is 1, not true": at(*CHECK, "passed", value=1),
    "missing that passed": at(*CHECK, "reading", value={"missing": "no meter"}),
    "passed with a missed check": at(*CHECK, "passed", value=False),
    "passed without a check": at("targets", 0, "checks", value=[]),
    "passed without a target": at("targets", value=[]),
    "passed without parity": at("artifacts", 0, "parity", "passed", value=False),
    "passed with failures": at("failures", value=["host-cpu: latency"]),
    "no verdict": without("passed"),
    "verdict that is a word": at("passed", value="yes"),
    "schema 2": at("schema", value=2),
    "no artifacts": without("artifacts"),
    "short hash": at("artifacts", 0, "sha256", value="abc"),
    "hash in capitals": at("targets", 0, "artifact_sha256", value="A" * 64),
    "absolute path": at("artifacts", 0, "path", value="/home/me/model.onnx"),
    "path that climbs out": at("artifacts", 0, "path", value="reduced/../../model.onnx"),
    "empty file": at("artifacts", 0, "size_bytes", value=0),
    "unknown format": at("artifacts", 0, "format", value="pickle"),
    "parity without a verdict": at("artifacts", 0, "parity", value={}),
    "history that is text": at("artifacts", 0, "history", value=["int8"]),
    "sparsity rule without source": at("targets", 0, "sparsity", value=[{"pattern": "2:4", "pays": True}]),
    "side that is neither": at("targets", 0, "placement", value={"both": {"CPU": 1}}),
    "sample that is text": at("targets", 0, "latency_samples", value={"dense": ["1.0"]}),
    "repeatability that is a bare number": at("repeatability", value={"quality": 1.0}),
    "unknown task": at("model", "task", value="vision"),
    "environment without packages": without("environment", "packages"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_caught(lie: str) -> None:
    report = minimal()
    LIES[lie](report)
    with pytest.raises(ValueError, match=r"\A\$[^\n]*\Z"):
        validate(report)


@pytest.mark.parametrize("build", [failing, missing_heavy])
def test_a_failed_report_may_not_be_relabelled(build: Callable[[], Report]) -> None:
    said = copy.deepcopy(build().to_json())
    said["passed"] = True
    with pytest.raises(ValueError, match=r"targets|failures"):
        validate(said)
