"""The report for people: one self-contained HTML file, verdict first. A pure function of the Report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from edgeredux import charts
from edgeredux.readings import AnyReading, Missing, Reading
from edgeredux.report import Report, StepLine, TargetReport, describe_check, show_number

METRIC_NAMES = {
    "latency_ms": "Latency",
    "throughput_per_s": "Throughput",
    "energy_mj": "Energy",
    "memory_mb": "Peak memory",
    "size_mb": "File size",
    "quality": "Quality",
    "agreement_top1": "Nearest neighbour kept",
}
_LAYERS_SHOWN = 12


def render(report: Report) -> str:
    """The page. All text in it is escaped: names and messages come from files of strangers."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        {"reading": cell, "number": show_number, "bytes": show_bytes, "words": describe_check, "spread": spread}
    )
    environment.tests["missing"] = lambda value: isinstance(value, Missing)
    return environment.get_template("report.html.j2").render(
        report=report,
        failures=report.failures(),
        headline=headline(report),
        charts=_charts(report),
        targets=[(target, _target_charts(target), _top_layers(target)) for target in report.targets],
        names=METRIC_NAMES,
        command=command(report),
    )


def headline(report: Report) -> str:
    """Why it passed or failed, in one sentence."""
    failures = report.failures()
    checks = sum(len(target.checks) for target in report.targets)
    if failures:
        return f"{len(failures)} of what was asked was not shown."
    where = ", ".join(target.name for target in report.targets)
    return f"All {checks} checks passed on {where}."


def command(report: Report) -> str:
    """The command that makes this report again."""
    return f"edgeredux run {report.recipe.get('name')} --model {shlex.quote(str(report.model.get('source')))} --out DIR"


def cell(value: AnyReading | None) -> str:
    """A reading as text; what is missing says so."""
    if value is None:
        return "–"
    return "missing" if isinstance(value, Missing) else show_number(value)


def spread(value: AnyReading) -> str:
    """p10 to p90, or the 95 % interval, where there is one."""
    if isinstance(value, Missing):
        return ""
    if value.low is not None and value.high is not None:
        return f"95 % interval {value.low:.4g} to {value.high:.4g}, n={value.n}"
    if value.p10 is not None and value.p90 is not None:
        return f"p10 {value.p10:.4g}, p90 {value.p90:.4g}, n={value.n}"
    return f"n={value.n}"


def show_bytes(value: int | None) -> str:
    """Bytes in kB or MB."""
    if value is None:
        return "–"
    return f"{value / 1e6:,.2f} MB" if value >= 100_000 else f"{value / 1e3:,.1f} kB"


def _charts(report: Report) -> Mapping[str, Markup]:
    latency: list[charts.Bar] = []
    size: list[charts.Bar] = []
    quality: list[charts.Span] = []
    for target in report.targets:
        for metric, rows in (("latency_ms", latency), ("size_mb", size)):
            for side, profile in (("dense", target.dense), ("reduced", target.reduced)):
                value = profile[metric]
                if isinstance(value, Reading):
                    rows.append(charts.Bar(f"{target.name} {side}", value.value, show_number(value), side))
        for side, profile in (("dense", target.dense), ("reduced", target.reduced)):
            value = profile["quality"]
            if isinstance(value, Reading):
                quality.append(charts.Span(f"{target.name} {side}", value.value, value.low, value.high, side))
    noise = report.repeatability.get("quality")
    if isinstance(noise, Reading):
        quality.insert(0, charts.Span("dense against itself", noise.value, noise.low, noise.high, "noise"))
    unit = next((t.reduced["quality"].unit for t in report.targets if isinstance(t.reduced["quality"], Reading)), "")
    return {
        "latency": charts.bars("Latency per target, dense and reduced", latency),
        "size": charts.bars("File size per target, dense and reduced", size),
        "quality": charts.intervals("Quality with 95 % intervals", quality, unit),
        "steps_size": charts.bars("Size after each step", _step_bars(report.steps, "bytes")),
        "steps_quality": charts.bars("Quality after each step", _step_bars(report.steps, "quality")),
        "steps_latency": charts.bars("Latency after each step", _step_bars(report.steps, "latency")),
    }


def _step_bars(steps: Sequence[StepLine], what: str) -> list[charts.Bar]:
    rows = []
    for line in steps:
        kind = "dense" if line.stage == "reduce" else "reduced"
        if what == "bytes" and line.bytes_after is not None and line.changed:
            rows.append(charts.Bar(line.name, float(line.bytes_after), show_bytes(line.bytes_after), kind))
        value = line.quality if what == "quality" else line.latency_ms if what == "latency" else None
        if isinstance(value, Reading) and (line.changed or line.stage == "export"):
            rows.append(charts.Bar(line.name, value.value, show_number(value), kind))
    return rows


def _target_charts(target: TargetReport) -> Mapping[str, Markup]:
    samples = [(side, side, target.latency_samples.get(side, ())) for side in ("dense", "reduced")]
    rows: list[tuple[str, list[tuple[str, float, str]]]] = []
    for side in ("dense", "reduced"):
        placed = sorted(target.placement.get(side, {}).items())
        rows.append((side, [(name, float(count), f"part{i % 4}") for i, (name, count) in enumerate(placed)]))
    return {
        "latency": charts.distributions("Latency of every run", samples, "ms"),
        "placement": charts.shares("Operators by where they ran", rows),
    }


def _top_layers(target: TargetReport) -> tuple[list[str], list[Mapping[str, Any]]]:
    rows = [row for row in target.layers.get("reduced", ()) if row]
    if not rows:
        return [], []
    columns = list(rows[0])
    amounts = [name for name in columns if isinstance(rows[0][name], (int, float))]
    key = next((name for name in amounts if "cycle" in name.lower() or "time" in name.lower()), None)
    if key is not None:
        rows = sorted(rows, key=lambda row: -float(row[key]))
    return columns[:8], rows[:_LAYERS_SHOWN]
