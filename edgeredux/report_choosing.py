"""What the report shows of a choice that was made: the sensitivity of each layer, and the settings a search tried.

Both come from the details of a reduce step, "sensitivity" (sensitivity_table.py) and "search" (trials.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeredux import charts
from edgeredux.readings import AnyReading, Reading
from edgeredux.report import SHARES, Report, StepLine, show_share, show_value
from edgeredux.report_words import limit, metric_name, show, spread
from edgeredux.sensitivity_table import LayerCurve, SensitivityTable
from edgeredux.trials import Trial, Trials

_COLOURS = ("bad", "part1", "part2")  # of the layers that mind most
_HEIGHT, _ROW_HEIGHT = 190, 26


def chosen(report: Report) -> list[dict[str, Any]]:
    """What the template shows, one part a step that scanned or searched, in the order of the steps."""
    found: list[dict[str, Any]] = []
    for line in report.steps:
        table, trials = sensitivity_of(line), trials_of(line)
        if table is not None:
            found.append({"kind": "sensitivity", "step": line.name, **_scan(table)})
        if trials is not None:
            found.append({"kind": "search", "step": line.name, **_search(trials)})
    return found


def sensitivity_of(line: StepLine) -> SensitivityTable | None:
    """The step's sensitivity table; None where it has none."""
    said = line.details.get("sensitivity") if line.stage == "reduce" else None
    return SensitivityTable.from_json(said) if said else None


def trials_of(line: StepLine) -> Trials | None:
    """The settings that the step tried; None where it searched nothing."""
    said = line.details.get("search") if line.stage == "reduce" else None
    return Trials.from_json(said) if said else None


def measures(table: SensitivityTable) -> list[tuple[str, str]]:
    """What is shown of each layer and level, (name, unit): a loss that only says 1 - quality again is left out."""
    found = [("quality", table.quality_unit)]
    if table.loss_unit != f"1 - {table.quality_unit}":
        found.append(("loss", table.loss_unit))
    if table.dense_task_loss is not None:
        found.append(("task_loss", "cross-entropy to the truth, nats"))
    return found


def dense_value(table: SensitivityTable, measure: str) -> float:
    """What the dense model has of a measure."""
    value: float = getattr(table, f"dense_{measure}")
    return value


def show_measure(value: float, measure: str, unit: str) -> str:
    """A number of a measure as text."""
    return show_share(value) if measure == "quality" and unit in SHARES else show_value(value)


def levels(table: SensitivityTable) -> list[tuple[float, float]]:
    """The least and largest share of zeros over the layers, level by level: patterns and rows round differently."""
    most = max(len(curve.zeros) for curve in table.curves)
    at = [[curve.zeros[level] for curve in table.curves if level < len(curve.zeros)] for level in range(most)]
    return [(min(shares), max(shares)) for shares in at]


def level_name(ends: tuple[float, float]) -> str:
    """A level as the head of a column: "50 %", or "44-50 %" where it is not the same in all layers."""
    low, high = (f"{100 * end:.0f}" for end in ends)
    return f"{high} %" if low == high else f"{low}–{high} %"


def _scan(table: SensitivityTable) -> dict[str, Any]:
    order = table.by_sensitivity()
    known = measures(table)
    ends = [point for curve in table.curves for point in (*curve.quality, table.dense_quality)]
    scale = charts.span(ends, ceiling=1.0 if table.quality_unit in SHARES else None)
    across = (0.0, max(curve.zeros[-1] for curve in table.curves))
    named = {curve.layer: kind for kind, curve in zip(_COLOURS, order, strict=False)}
    back = [("dense faint", _points(table, curve)) for curve in order if curve.layer not in named]
    front = [(f"{kind} strong", _points(table, curve)) for curve in order if (kind := named.get(curve.layer))]
    uneven = {level for level, (low, high) in enumerate(levels(table)) if round(100 * low) != round(100 * high)}
    return {
        "how": table.how,
        "unit": table.quality_unit,
        "chart": charts.curves([*back, *front], across, scale, _HEIGHT),
        "axis": charts.axis(across),
        "named": [(kind, layer) for layer, kind in named.items()],
        "others": len(order) > len(named),
        "measures": known,
        "levels": [level_name(ends) for ends in levels(table)],
        "dense": [show_measure(dense_value(table, name), name, unit) for name, unit in known],
        "rows": [
            {
                "layer": curve.layer,
                "weights": curve.weights,
                "drawn": charts.curves([("reduced", _points(table, curve))], across, scale, _ROW_HEIGHT, grid=False),
                "cells": _cells(table, curve, known, uneven),
            }
            for curve in order
        ],
    }


def _points(table: SensitivityTable, curve: LayerCurve) -> list[tuple[float, float]]:
    return [(0.0, table.dense_quality), *zip(curve.zeros, curve.quality, strict=True)]


def _cells(
    table: SensitivityTable, curve: LayerCurve, known: Sequence[tuple[str, str]], uneven: set[int]
) -> list[dict[str, Any] | None]:
    """One cell a level: every measure, and the exact zeros where not all layers have the same."""
    found: list[dict[str, Any] | None] = []
    for level in range(len(levels(table))):
        if level >= len(curve.zeros):
            found.append(None)
            continue
        values = [show_measure(getattr(curve, name)[level], name, unit) for name, unit in known]
        found.append({"values": values, "zeros": f"at {100 * curve.zeros[level]:.1f} %" if level in uneven else ""})
    return found


def _search(trials: Trials) -> dict[str, Any]:
    names = [check.name for check in trials.tried[0].checks]
    ordered = sorted(trials.tried, key=lambda trial: trial.zeros)
    return {
        "how": trials.how,
        "taken": trials.taken,
        "charts": [_limit_chart(ordered, place) for place in range(len(names))],
        "names": [f"{metric_name(check.name)} {limit(check)}" for check in trials.tried[0].checks],
        "dense": [show(trials.dense[name]) for name in names],
        "rows": [
            {
                "zeros": f"{trial.zeros:.4g}",
                "left": left(trial),
                "cells": [
                    {"said": show(check.reading), "spread": spread(check.reading), "reading": check.reading}
                    for check in trial.checks
                ],
                "verdict": verdict(trials, trial),
                "within": trial.within,
            }
            for trial in trials.tried
        ],
    }


def _limit_chart(ordered: Sequence[Trial], place: int) -> dict[str, Any]:
    check = ordered[0].checks[place]
    points = [(trial.zeros, value) for trial in ordered if (value := _value(trial.checks[place].reading)) is not None]
    unit = next((r.unit for trial in ordered if isinstance(r := trial.checks[place].reading, Reading)), "")
    scale = charts.span([value for _, value in points] + [check.limit], ceiling=1.0 if unit in SHARES else None)
    across = (0.0, ordered[-1].zeros)
    marks = [
        ("reduced" if trial.checks[place].passed else "bad", trial.zeros, value)
        for trial in ordered
        if (value := _value(trial.checks[place].reading)) is not None
    ]
    return {
        "name": metric_name(check.name),
        "unit": unit if unit != "x" else "",
        "drawn": charts.curves([("reduced", points)], across, scale, _HEIGHT, limit=check.limit, marks=marks),
        "axis": charts.axis(across),
    }


def _value(reading: AnyReading) -> float | None:
    return reading.value if isinstance(reading, Reading) else None


def left(trial: Trial) -> str:
    """What the setting really left: exact zeros, or parameters where shapes shrank."""
    if trial.zero_weights is None or trial.weights is None:
        return f"{trial.parameters:,} parameters"
    return f"{trial.zero_weights:,} of {trial.weights:,} weights zero"


def verdict(trials: Trials, trial: Trial) -> str:
    """What came of a trial."""
    if not trial.within:
        return "missed"
    if trial.zeros == trials.taken:
        return "taken"
    return "as it came" if trial.zeros == 0 else "within"
