"""The report's verdict, its JSON and its words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_samples import SAMPLES, failing, missing_heavy, passing

from edgeredux.readings import Missing, Reading
from edgeredux.report import (
    METRICS,
    Check,
    Report,
    StepLine,
    TargetReport,
    describe_check,
    show_beside,
    show_number,
)

MS = Reading(5.0, "ms", "measured", 40, 4.5, 6.0, how="clock")


def with_checks(report: Report, *checks: Check) -> Report:
    """The report with these checks on its first target and no others anywhere."""
    return replace(report, targets=(replace(report.targets[0], checks=checks),))


@pytest.mark.parametrize(
    ("direction", "limit", "value", "passed"),
    [
        ("at_most", 5.0, 5.0, True),
        ("at_most", 5.0, 5.0000001, False),
        ("at_most", 5.0, 4.9, True),
        ("at_least", 5.0, 5.0, True),
        ("at_least", 5.0, 4.9999999, False),
        ("at_least", 5.0, 5.1, True),
    ],
)
def test_a_check_is_judged_on_its_side_and_the_limit_itself_passes(
    direction: Any, limit: float, value: float, passed: bool
) -> None:
    assert Check("latency_ms", limit, direction, replace(MS, value=value)).passed is passed


@pytest.mark.parametrize("direction", ["at_most", "at_least"])
def test_a_missing_reading_passes_nothing(direction: Any) -> None:
    assert not Check("energy_mj", 0.0, direction, Missing("no meter")).passed
    assert not Check("energy_mj", 1e9, direction, Missing("no meter")).passed


def test_a_noisy_reading_is_judged_and_said() -> None:
    check = Check("latency_ms", 6.0, "at_most", replace(MS, noisy=True))
    assert check.passed
    assert describe_check(check) == "latency_ms at most 6 was asked for, 5.00 ms was measured, in a noisy run"
    assert any("noisy" in line for line in with_checks(passing(), check).remarks())


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), True, "5", None])
def test_a_limit_that_is_no_finite_number_is_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match="no finite number"):
        Check("latency_ms", limit, "at_most", MS)


def test_an_unknown_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="at_most, at_least"):
        Check("latency_ms", 5, "below", MS)  # type: ignore[arg-type]


def test_the_samples_have_the_verdicts_they_are_named_after() -> None:
    assert passing().passed
    assert passing().failures() == []
    assert not failing().passed
    assert not missing_heavy().passed
    assert len(failing().failures()) == 3
    assert len(missing_heavy().failures()) == 2


def test_no_target_is_no_pass() -> None:
    report = replace(passing(), targets=())
    assert not report.passed
    assert report.failures() == ["no target was profiled"]


def test_no_check_is_no_pass() -> None:
    report = with_checks(passing())
    assert not report.passed
    assert not report.targets[0].passed
    assert report.failures() == ["host-cpu: no check was asked for, so nothing was shown"]
    one_of_many = replace(passing(), targets=(*passing().targets[:3], replace(passing().targets[3], checks=())))
    assert not one_of_many.passed


@pytest.mark.parametrize("parity", [{}, {"passed": False}, {"passed": None}, {"passed": "yes"}, {"passed": 1}])
def test_an_artifact_that_did_not_prove_its_parity_fails(parity: dict[str, Any]) -> None:
    report = passing()
    report = replace(report, artifacts=(replace(report.artifacts[0], parity=parity), *report.artifacts[1:]))
    assert not report.passed
    assert report.failures() == ["dense/onnx-float: it does not agree with what it was made from"]
    assert report.to_json()["artifacts"][0]["parity"].get("passed") == parity.get("passed", False)


def test_numbers_of_a_file_that_is_not_there_fail() -> None:
    report = passing()
    report = replace(report, targets=(replace(report.targets[0], artifact_sha256="0" * 64),))
    assert report.failures() == ["host-cpu: its reduced numbers quote 000000000000…, no artifact of this report"]


def test_a_target_that_could_not_be_judged_fails() -> None:
    report = passing()
    report = replace(report, targets=(replace(report.targets[0], error="the board\nwent away"),))
    assert report.failures() == ["host-cpu: could not be judged: the board went away"]
    assert not report.targets[0].passed


def test_a_pass_that_was_rolled_back_is_recorded_and_fails_nothing() -> None:
    line = StepLine("pass", "onnx-int8: tile", False, "rolled back: NaN", details={"rolled_back": True})
    report = replace(passing(), steps=(line,))
    assert report.passed
    assert report.remarks()[-1] == "rolled back, because the outputs no longer agreed: onnx-int8: tile"


def test_each_failure_is_one_line_whatever_the_reason_holds() -> None:
    report = with_checks(passing(), Check("energy_mj", 1, "at_most", Missing("first\nsecond\r\nthird")))
    (line,) = report.failures()
    assert line.splitlines() == [line]
    assert "energy_mj at most 1" in line
    assert "first second third" in line


def test_a_failed_check_names_target_limit_and_reading() -> None:
    assert failing().failures()[0] == (
        "host-cpu: latency_ratio at most 0.4 was asked for, 0.472x was measured, in a noisy run"
    )


def test_simulated_numbers_behind_a_verdict_are_remarked() -> None:
    assert passing().remarks() == [
        "simulated, not measured: the numbers behind 2 of 10 checks, on ethos-u85-512, snapdragon-8-gen-3"
    ]


@pytest.mark.parametrize("name", SAMPLES)
def test_json_round_trip(name: str) -> None:
    said = SAMPLES[name]().to_json()
    text = json.dumps(said, allow_nan=False)
    assert Report.from_json(json.loads(text)).to_json() == said


def test_the_keys_others_build_on() -> None:
    said = passing().to_json()
    assert {"schema", "passed", "model", "recipe", "artifacts", "targets", "environment"} <= said.keys()
    assert said["schema"] == 1
    assert {"name", "format", "path", "sha256", "size_bytes", "history", "parity"} <= said["artifacts"][0].keys()
    target = said["targets"][0]
    assert {"name", "artifact_sha256", "dense", "reduced", "checks"} <= target.keys()
    assert {"name", "limit", "reading", "passed"} <= target["checks"][0].keys()
    for side in ("dense", "reduced"):
        assert list(target[side])[:6] == list(METRICS)
    assert {"value", "unit", "source", "n", "p10", "p90", "how"} <= target["reduced"]["latency_ms"].keys()
    assert target["reduced"]["energy_mj"].keys() == {"missing"}


def test_a_profile_always_has_the_six() -> None:
    report = passing()
    report = replace(report, targets=(replace(report.targets[0], dense={}, reduced={"quality": MS}),))
    target = report.to_json()["targets"][0]
    assert target["dense"] == {name: {"missing": "nobody took it"} for name in METRICS}
    assert target["reduced"]["quality"]["value"] == 5.0


def test_what_json_cannot_hold_becomes_null_or_text() -> None:
    facts = {"reduced": {"nan": float("nan"), "inf": float("inf"), "np": np.float32(1.5), "array": np.arange(3), 7: Path("a/b")}}  # fmt: skip
    report = passing()
    report = replace(report, targets=(replace(report.targets[0], facts=facts),))
    said = json.loads(json.dumps(report.to_json(), allow_nan=False))
    expected = {"nan": None, "inf": None, "np": 1.5, "array": [0, 1, 2], "7": "a/b"}
    assert said["targets"][0]["facts"]["reduced"] == expected


def test_a_stored_verdict_is_not_believed() -> None:
    said = failing().to_json()
    said["passed"] = True
    said["targets"][0]["checks"][0]["passed"] = True
    found = Report.from_json(said)
    assert not found.passed
    assert len(found.failures()) == 3


def _without(key: str) -> Any:
    return {name: value for name, value in passing().to_json().items() if name != key}


@pytest.mark.parametrize(
    "hostile",
    [
        None,
        [],
        "report",
        {},
        {"schema": 2},
        {**_without("targets"), "targets": ["text"]},
        {**_without("targets"), "targets": {"a": 1}},
        {**_without("model"), "model": 5},
        {**_without("repeatability"), "repeatability": {"quality": {"value": "nan"}}},
        {**_without("artifacts"), "artifacts": [{"name": "x"}]},
        _without("steps"),
    ],
)
def test_reading_something_else_is_a_value_error_in_one_line(hostile: Any) -> None:
    with pytest.raises(ValueError, match=r"\Ano report of edgeredux: [^\n]*\Z"):
        Report.from_json(hostile)


def test_reports_are_frozen() -> None:
    with pytest.raises(AttributeError):
        passing().stage = "reduced"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        passing().targets[0].name = "other"  # type: ignore[misc]
    assert TargetReport.__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (4.206, "ms", "4.21 ms"),
        (123.44, "ms", "123.4 ms"),
        (12345.6, "1/s", "12,346 1/s"),
        (0.2309, "x", "0.231x"),
        (0.000423, "mJ", "0.00042 mJ"),
        (0, "operators", "0 operators"),
        (0.9571, "mean cosine to dense", "0.957"),
        (0.99961, "accuracy", "0.9996"),
        (0.9999999, "mean cosine to dense", ">0.9999"),
        (1.0, "share of texts", "1.000"),
        (-3.2, "ms", "-3.20 ms"),
    ],
)
def test_numbers_are_readable_and_what_is_not_one_never_looks_like_one(value: float, unit: str, said: str) -> None:
    assert show_number(Reading(value, unit, "measured")) == said


@pytest.mark.parametrize(
    ("value", "unit", "limit", "said"),
    [
        (0.40002, "x", 0.4, "0.40002x"),
        (0.4, "x", 0.4, "0.400x"),
        (0.41, "x", 0.4, "0.410x"),
        (0.92996, "mean cosine to dense", 0.93, "0.92996"),
        (5.001, "ms", 5.0, "5.001 ms"),
    ],
)
def test_a_reading_beside_its_limit_does_not_look_equal_without_being_it(
    value: float, unit: str, limit: float, said: str
) -> None:
    shown = show_beside(Reading(value, unit, "measured"), limit)
    assert shown == said
