"""Sensitivity and search in the report: every layer, level and trial is on the page and in the terminal's tables."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_samples import passing
from rich.console import Console
from test_prune_structured import bert, context
from test_report_html import Page, numbers
from tiny_models import tiny_classifier, tiny_llama, tokens

from edgeredux import charts
from edgeredux.artifact import Change
from edgeredux.model import Model
from edgeredux.pruning.sensitivity_step import Sensitivity
from edgeredux.pruning.until import PruneUntil
from edgeredux.readings import Missing, Reading
from edgeredux.report import Check, Report, StepLine, show_share, validate
from edgeredux.report_choosing import chosen, level_name
from edgeredux.report_choosing_text import tables
from edgeredux.report_html import render
from edgeredux.sensitivity_table import LayerCurve, SensitivityTable
from edgeredux.trials import Trial, Trials


def reported(*changes: Change) -> Report:
    """The sample report after such steps, as it is read again from its JSON file."""
    lines = tuple(
        StepLine("reduce", change.step, change.changed, change.why, details=change.details) for change in changes
    )
    report = replace(passing(), steps=(*lines, *passing().steps))
    return Report.from_json(json.loads(json.dumps(report.to_json())))


def shown(report: Report, width: int = 80) -> str:
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    for table in tables(report.steps):
        console.print(table)
    return out.getvalue()


def searched(*trials: tuple[float, float]) -> Trials:
    tried = [
        Trial(zeros, (Check("quality", 0.9, "at_least", Reading(value, "mean cosine to dense", "measured", 8)),), 100)
        for zeros, value in trials
    ]
    dense = {"quality": Reading(1.0, "mean cosine to dense", "measured", 8)}
    return Trials(tuple(tried), max(trial.zeros for trial in tried if trial.within), dense, "wanda")


def test_every_layer_and_level_of_a_scan_is_on_the_page(tmp_path: Path) -> None:
    model = bert()
    _, change = Sensitivity(method="magnitude", grid=(0.5, 0.9)).apply(model, context(model, tmp_path))
    report = reported(change)
    validate(report.to_json())
    page = Page(render(report))
    assert "How much each layer minds" in page.text
    rows = {row["layer"]: row for row in change.details["sensitivity"]["layers"]}
    assert len(rows) == 12
    part = chosen(report)[0]
    assert part["levels"] == ["50 %", "90 %"]
    assert part["measures"] == [("quality", "mean cosine to dense")]  # the loss says the same once more
    assert part["dense"] == ["1.000"]
    for row in part["rows"]:
        assert row["layer"] in page.text
        assert [cell["values"] for cell in row["cells"]] == [[show_share(q)] for q in rows[row["layer"]]["quality"]]
        assert all(cell["values"][0] in page.text for cell in row["cells"])
    order = [row["layer"] for row in part["rows"]]
    assert order == [
        curve.layer for curve in SensitivityTable.from_json(change.details["sensitivity"]).by_sensitivity()
    ]
    # A line a layer in the large chart, from the dense model on; and one in each row.
    assert part["chart"].count("<polyline") == 12
    low = charts.span([1.0, *(q for row in rows.values() for q in row["quality"])], ceiling=1.0)[0]
    for row in part["rows"]:
        points = re.findall(r'points="([^"]*)"', row["drawn"])
        across, up = (0.0, *rows[row["layer"]]["zeros"]), (1.0, *rows[row["layer"]]["quality"])
        most = max(item["zeros"][-1] for item in rows.values())
        places = zip(across, up, strict=True)
        expected = [f"{100 * x / most:.2f},{100 * (1 - (y - low) / (1 - low)):.2f}" for x, y in places]
        assert points == [" ".join(expected)]
    assert shown(report).count("encoder.layer.") == 12


@pytest.mark.parametrize(
    ("make", "data", "expected"),
    [
        (tiny_llama, "plain", ["quality", "loss", "task_loss"]),
        (tiny_classifier, "plain", ["quality", "loss"]),
        (tiny_classifier, "labels", ["quality", "loss", "task_loss"]),
    ],
)
def test_losses_stand_beside_quality_where_they_say_more(
    make: Any, data: str, expected: list[str], tmp_path: Path
) -> None:
    model: Model = make()
    batches = tokens(model, *[(4, 9)] * 4)
    if data == "labels":
        rng = np.random.default_rng(0)
        batches = [{**feed, "labels": rng.integers(0, 3, 4)} for feed in batches]
    _, change = Sensitivity(grid=(0.5,)).apply(model, context(model, tmp_path, batches))
    part = chosen(reported(change))[0]
    assert [name for name, _ in part["measures"]] == expected
    assert all(len(cell["values"]) == len(expected) for row in part["rows"] for cell in row["cells"])
    assert len(part["dense"]) == len(expected)
    if "task_loss" in expected:
        value = change.details["sensitivity"]["dense_task_loss"]
        assert f"{value:.2f}" == part["dense"][-1]
    if data == "labels":
        assert part["unit"] == "accuracy"
    assert len(tables(reported(change).steps)) == len(expected)


def test_a_level_that_differs_by_layer_says_its_own_zeros() -> None:
    curves = (
        LayerCurve("a", 9, (4 / 9, 6 / 9), (0.1, 0.2), (0.9, 0.8), (None, None)),
        LayerCurve("b", 90, (0.5,), (0.1,), (0.95,), (None,)),
    )
    table = SensitivityTable(curves, "1 - mean cosine to dense", "mean cosine to dense", "wanda")
    part = chosen(reported(Change("sensitivity", False, "", {"sensitivity": table.to_json()})))[0]
    assert part["levels"] == ["44–50 %", "67 %"]
    cells = {row["layer"]: row["cells"] for row in part["rows"]}
    assert [cell["zeros"] for cell in cells["a"]] == ["at 44.4 %", ""]
    assert cells["b"][1] is None
    assert level_name((0.5, 0.5)) == "50 %"


def test_every_trial_with_its_verdict_is_on_the_page(tmp_path: Path) -> None:
    model = bert()
    given = context(model, tmp_path)
    _, change = PruneUntil(limit={"quality": 0.0, "agreement_top1": 0.0}, by=0.2, most=0.6).apply(model, given)
    report = reported(change)
    validate(report.to_json())
    part = chosen(report)[0]
    assert [row["zeros"] for row in part["rows"]] == ["0", "0.2", "0.4", "0.6"]
    assert [row["verdict"] for row in part["rows"]] == ["as it came", "within", "within", "taken"]
    assert len(part["charts"]) == len(part["names"]) == 2
    page = Page(render(report))
    assert "How far the zeros could go" in page.text
    assert "✓ taken" in page.text
    for trial in change.details["search"]["tried"][1:]:
        assert f"{trial['zero_weights']:,} of {trial['weights']:,} weights zero" in page.text
        assert f"{100 * trial['zero_weights'] / trial['weights']:.2f} % zero" in shown(report)
    assert max(map(len, shown(report).splitlines())) <= 80


def test_a_missed_setting_is_marked_and_a_missing_reading_says_why() -> None:
    trials = searched((0.0, 1.0), (0.1, 0.95), (0.2, 0.85))
    nan = Trial(0.3, (Check("quality", 0.9, "at_least", Missing("the outputs hold NaN or infinite values")),), 100)
    trials = replace(trials, tried=(*trials.tried, nan))
    report = reported(Change("prune_until", True, "", {"search": trials.to_json()}))
    part = chosen(report)[0]
    assert [row["verdict"] for row in part["rows"]] == ["as it came", "taken", "missed", "missed"]
    page = Page(render(report))
    assert "NaN or infinite" in page.text
    assert page.text.count("✗ missed") == 2
    svg = part["charts"][0]["drawn"]
    assert svg.count('<circle class="reduced"') == 2
    assert svg.count('<circle class="bad"') == 1
    assert svg.count('class="limit"') == 1
    assert "missed" in shown(report)


def test_curves_lie_where_their_numbers_are() -> None:
    svg = charts.curves(
        [("reduced", [(0.0, 1.0), (0.5, 0.0)])], (0, 1), (0, 1), 100, limit=0.25, marks=[("bad", 0.5, 0.75)]
    )
    assert 'points="0.00,0.00 50.00,100.00"' in svg
    assert numbers(svg, "circle", "cx") == [50]
    assert numbers(svg, "circle", "cy") == [25]
    assert 'class="limit" x1="0" x2="100%" y1="75.00%"' in svg
    assert "text" not in charts.curves([], (0, 1), (0, 1), 100, grid=False)


def test_names_from_strangers_stay_text_in_choices() -> None:
    evil = "<script>alert(1)</script>\x1b[2J"
    table = SensitivityTable((LayerCurve(evil, 9, (0.5,), (0.1,), (0.9,), (None,)),), "loss", "quality", evil)
    report = reported(Change("sensitivity", False, "", {"sensitivity": table.to_json()}))
    assert "<script" not in render(report)
    assert "\x1b[2J" not in shown(report)


def test_a_report_without_choices_has_no_such_section() -> None:
    assert "What was chosen" not in render(passing())
    assert tables(passing().steps) == []


def test_a_scan_of_a_large_model_stays_light() -> None:
    curves = tuple(
        LayerCurve(f"layers.{k}.proj", 10, (0.3, 0.5, 0.7, 0.9), (0.1,) * 4, (0.9 - k * 1e-5,) * 4, (None,) * 4)
        for k in range(400)
    )
    table = SensitivityTable(curves, "loss", "quality", "wanda")
    report = reported(Change("sensitivity", False, "", {"sensitivity": table.to_json()}))
    html = render(report)
    assert len(html.encode()) < 1_000_000
    assert "The other 384 layers" in html
    assert "and 388 layers that mind less" in shown(report)
