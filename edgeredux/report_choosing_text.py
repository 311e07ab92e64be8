"""A choice that was made, in a terminal: the layers that mind most, and every setting that a search tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeredux.report import StepLine, plain_text
from edgeredux.report_choosing import (
    dense_value,
    left,
    level_name,
    levels,
    measures,
    sensitivity_of,
    show_measure,
    trials_of,
    verdict,
)
from edgeredux.report_words import limit, metric_name, show
from edgeredux.sensitivity_table import SensitivityTable
from edgeredux.trials import Trial, Trials

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 12  # layers; report.html and --json have all


def tables(steps: Sequence[StepLine]) -> list[Table]:
    """One table a measure of each scan, and one a search, in the order of the steps."""
    found: list[Table] = []
    for line in steps:
        table, trials = sensitivity_of(line), trials_of(line)
        if table is not None:
            found += [_scan(table, name, unit) for name, unit in measures(table)]
        if trials is not None:
            found.append(_search(trials))
    return found


def _scan(table: SensitivityTable, measure: str, unit: str) -> Table:
    order = table.by_sensitivity()
    drawn = _table(f"sensitivity: {unit}, one layer alone", f"{table.how}; most sensitive first")
    drawn.add_column("layer", overflow="fold")
    heads = [level_name(ends) for ends in levels(table)]
    for head in heads:
        drawn.add_column(f"{head} zeros" if head is heads[0] else head, justify="right")
    dense = show_measure(dense_value(table, measure), measure, unit)
    drawn.add_row(plain_text("dense model"), *[plain_text(dense)] * len(heads), style="dim")
    for curve in order[:_SHOWN]:
        values = [show_measure(value, measure, unit) for value in getattr(curve, measure)]
        drawn.add_row(plain_text(curve.layer), *(plain_text(value) for value in values))
    if len(order) > _SHOWN:
        drawn.add_row(plain_text(f"and {len(order) - _SHOWN} layers that mind less", "dim"))
    return drawn


def _search(trials: Trials) -> Table:
    drawn = _table("settings tried", trials.how)
    drawn.add_column("zeros", justify="right")
    drawn.add_column("left", overflow="fold")
    for check in trials.tried[0].checks:
        drawn.add_column(f"{metric_name(check.name)} {limit(check)}", justify="right", overflow="fold")
    drawn.add_column("verdict")
    dense = (plain_text(show(trials.dense[check.name])) for check in trials.tried[0].checks)
    drawn.add_row(plain_text("dense"), "", *dense, "", style="dim")
    for trial in trials.tried:
        said = verdict(trials, trial)
        colour = "red" if not trial.within else "green" if said == "taken" else ""
        drawn.add_row(
            plain_text(f"{trial.zeros:.4g}"),
            plain_text(_left(trial)),
            *(plain_text(show(check.reading)) for check in trial.checks),
            plain_text(said, colour),
        )
    return drawn


def _left(trial: Trial) -> str:
    """What the setting left, short."""
    if trial.zero_weights is None or trial.weights is None:
        return left(trial)
    return f"{100 * trial.zero_weights / trial.weights:.2f} % zero"


def _table(title: str, caption: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=plain_text(title, "bold"),
        caption=plain_text(caption, "dim"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
