"""The report in a terminal."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from report_samples import SAMPLES, failing, missing_heavy, passing
from rich.console import Console

from edgeredux.readings import Missing, Reading
from edgeredux.report import Report, summary_table


def shown(report: Report, width: int = 100) -> str:
    """What a terminal of this width gets."""
    out = StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(summary_table(report))
    return out.getvalue()


def test_dense_reduced_ratio_and_source_in_a_row() -> None:
    rows = [line.split() for line in shown(passing()).splitlines()]
    assert ["host-cpu", "latency_ms", "12.15", "ms", "3.62", "ms", "0.299x", "measured"] in rows
    assert ["energy_mj", "2.31", "mJ", "1.77", "mJ", "0.766x", "estimated"] in rows
    assert ["quality", "0.999", "0.959", "simulated"] in rows


def test_ticks_and_crosses() -> None:
    assert shown(passing()).count("✓") == 10
    assert "✗" not in shown(passing())
    assert shown(failing()).count("✗") == 3
    assert shown(failing()).count("✓") == 1


def test_what_is_missing_is_named_once_with_its_reason() -> None:
    said = " ".join(shown(passing()).split())
    assert "missing: energy_mj on host-cpu; energy_mj on host-cpu:litert: zeus: RAPL counters are absent" in said
    assert "missing: latency_ms, memory_mb, energy_mj on snapdragon-8-gen-3: the HTP library" in said


def test_failures_that_are_no_check_are_said() -> None:
    report = passing()
    broken = replace(report.artifacts[4], parity={"passed": False})
    report = replace(report, artifacts=(*report.artifacts[:4], broken, *report.artifacts[5:]))
    assert "✗ reduced/onnx-int8: it does not agree with what it was made from" in shown(report)


@pytest.mark.parametrize("name", SAMPLES)
def test_it_fits_80_columns(name: str) -> None:
    assert max(len(line) for line in shown(SAMPLES[name](), 80).splitlines()) <= 80


def test_names_cannot_move_the_cursor_or_be_markup() -> None:
    report = missing_heavy()
    reason = "\x1b[2J\x1b]0;title\x07 [red]boom[/red] \u202egnp"
    target = replace(report.targets[0], reduced={"latency_ms": Missing(reason)})
    said = shown(replace(report, targets=(target,), warnings=(reason,), recipe={**report.recipe, "name": reason}))
    assert "\x1b[2J" not in said
    assert "\x1b]0" not in said
    assert "\u202e" not in said
    assert "[red]boom[/red]" in said


def test_a_noisy_number_is_marked() -> None:
    report = passing()
    noisy = Reading(3.0, "ms", "measured", noisy=True)
    target = replace(report.targets[0], reduced={**report.targets[0].reduced, "latency_ms": noisy})
    assert "measured, noisy" in shown(replace(report, targets=(target,)))
