"""The report for people: one self-contained HTML file, verdict first. A pure function of the Report.

The page holds no script and asks for nothing from outside; its own content policy forbids both. All text is escaped,
because names and messages come from files of strangers.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from edgeredux import charts, report_words
from edgeredux.artifact import Artifact
from edgeredux.readings import AnyReading, Missing, Reading
from edgeredux.report import RATIO_OF, SHARES, Report, StepLine, show_value
from edgeredux.report_choosing import chosen
from edgeredux.report_target import view
from edgeredux.report_words import METRIC_NAMES, SOURCE_WORDS, change, show, unique


def render(report: Report) -> str:
    """The page. Equal reports give equal pages, byte for byte."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        reading=show,
        spread=report_words.spread,
        bytes=report_words.show_bytes,
        count=report_words.count,
        metric=report_words.metric_name,
        fact=report_words.show_fact,
        beside=report_words.beside,
        limit=report_words.limit,
        margin=report_words.margin,
        link=report_words.link,
    )
    environment.tests["missing"] = lambda value: isinstance(value, Missing)
    page = environment.get_template("report.html.j2").render(
        report=report,
        failures=report.failures(),
        remarks=[*report.remarks(), *report.warnings],
        headline=headline(report),
        tiles=tiles(report),
        targets=[view(target) for target in report.targets],
        artifacts=[_artifact(item) for item in report.artifacts],
        quality=quality_charts(report),
        steps=steps(report),
        choices=chosen(report),
        sources=SOURCE_WORDS,
        commands=commands(report),
        recipe=yaml.safe_dump(dict(report.to_json()["recipe"]), sort_keys=False, allow_unicode=True, width=100),
    )
    # A name from a file system may hold bytes that are no text (lone surrogates); the page is UTF-8 all the same.
    return page.encode("utf-8", "replace").decode("utf-8")


def headline(report: Report) -> str:
    """The verdict in one sentence."""
    checks = [check for target in report.targets for check in target.checks]
    missed = sum(not check.passed for check in checks)
    others = len(report.failures()) - missed
    if not report.targets:
        return "Nothing was judged."
    if report.passed:
        return "The one check passed." if len(checks) == 1 else f"All {len(checks)} checks passed."
    said = [f"{missed} of {len(checks)} checks missed"] if missed else []
    said += [f"{others} other failure{'s' if others > 1 else ''}"] if others else []
    return " and ".join(said) + "."


@dataclass(frozen=True)
class Tile:
    """One key figure: what, in large the outcome, below it from where to where, and its source."""

    name: str
    big: str
    small: str
    reading: AnyReading


def tiles(report: Report) -> list[Tile]:
    """Latency, size and quality of the first target."""
    if not report.targets:
        return []
    target = report.targets[0]
    found = []
    for metric, better, worse in (("latency_ms", "faster", "slower"), ("size_mb", "smaller", "larger")):
        dense, reduced = target.dense.get(metric), target.reduced.get(metric)
        ratio = target.ratios.get(RATIO_OF[metric])
        if isinstance(ratio, Reading) and ratio.value > 0:
            found.append(
                Tile(
                    METRIC_NAMES[metric], _times(ratio.value, better, worse), f"{show(dense)} → {show(reduced)}", ratio
                )
            )
        else:
            absent = next(
                (v for v in (reduced, dense, ratio) if isinstance(v, Missing)), Missing("no ratio was formed")
            )
            found.append(Tile(METRIC_NAMES[metric], "not known", absent.reason, absent))
    quality = target.reduced.get("quality", Missing("nobody took it"))
    if isinstance(quality, Reading):
        small = f"{quality.unit}; dense model here {show(target.dense.get('quality'))}"
        found.append(Tile("Quality", show(quality).removesuffix(quality.unit).strip(), small, quality))
    else:
        found.append(Tile("Quality", "not known", quality.reason, quality))
    return found


def _times(ratio: float, better: str, worse: str) -> str:
    if 0.995 <= ratio <= 1.005:
        return "as dense"
    times = 1 / ratio if ratio < 1 else ratio
    return f"{times:.{1 if times >= 2 else 2}f}× {better if ratio < 1 else worse}"


def commands(report: Report) -> list[tuple[str, str]]:
    """Commands with what each does, to be typed in the bundle's folder."""
    judged = {target.target for target in report.targets}
    wanted = report.recipe.get("targets")
    only = judged and isinstance(wanted, Mapping) and judged != set(wanted)
    chosen = "".join(f" --target {shlex.quote(name)}" for name in sorted(judged)) if only else ""
    version = str(report.environment.get("edgeredux", ""))
    return [
        (f"pip install {shlex.quote(f'edgeredux=={version}')}", "the version that wrote this report"),
        (f"edgeredux run recipe.yaml{chosen} --out ../again", "the same recipe, model and data once more"),
        ("edgeredux report .", "compare every file here with its hash, judge the readings again, draw this page"),
    ]


def _artifact(artifact: Artifact) -> dict[str, Any]:
    """An artifact with what is said of its parity, in words."""
    parity = artifact.parity
    found = [_figures(parity)]
    worst = parity.get("worst")
    if isinstance(worst, Mapping) and worst:
        found.append(f"most moved by {worst.get('pass')}: {_figures(worst)}".removesuffix(": "))
    export = parity.get("export")
    if isinstance(export, Mapping) and export:
        found.append(f"export: {_figures(export)}".removesuffix(": "))
    found += [str(parity[name]) for name in ("reason",) if parity.get(name)]
    return {"artifact": artifact, "passed": parity.get("passed") is True, "parity": [line for line in found if line]}


def _figures(parity: Mapping[str, Any]) -> str:
    names = {"max_abs": "largest difference", "mean_cosine": "mean cosine", "cosine": "cosine", "samples": "inputs"}
    taken = {words: parity[name] for name, words in names.items() if isinstance(parity.get(name), (int, float))}
    return ", ".join(f"{words} {value:.7g}" for words, value in taken.items())


def quality_charts(report: Report) -> list[dict[str, Any]]:
    """One chart a metric and unit: every target's intervals over the noise of the dense model, with the limits."""
    found = []
    for metric in ("quality", "agreement_top1"):
        noise = report.repeatability.get(metric)
        units = unique(
            value.unit
            for target in report.targets
            for value in (target.reduced.get(metric), target.dense.get(metric))
            if isinstance(value, Reading)
        )
        for unit in units:
            chart = _quality_chart(report, metric, unit, noise if isinstance(noise, Reading) else None)
            found.append(chart)
    return found


def _quality_chart(report: Report, metric: str, unit: str, noise: Reading | None) -> dict[str, Any]:
    noise = noise if noise is not None and noise.unit == unit else None
    taken: list[tuple[str, str, Reading, float | None]] = []
    for target in report.targets:
        asked = {check.name: check.limit for check in target.checks}
        limit = asked.get(metric, asked.get("perplexity") if metric == "quality" else None)
        for side, profile in (("dense", target.dense), ("reduced", target.reduced)):
            value = profile.get(metric)
            if isinstance(value, Reading) and value.unit == unit:
                taken.append((target.name, side, value, limit if side == "reduced" else None))
    ends = [end for _, _, v, limit in taken for end in (v.value, v.low, v.high, limit) if end is not None]
    if noise is not None:
        ends += [end for end in (noise.value, noise.low, noise.high) if end is not None]
    scale = charts.span(ends, ceiling=1.0 if unit in SHARES else None)
    band = (noise.low, noise.high) if noise is not None and noise.low is not None and noise.high is not None else None
    rows = [
        {
            "target": name,
            "side": side,
            "drawn": charts.interval(value.value, value.low, value.high, scale, side, band, limit),
            "reading": value,
            "limit": limit,
        }
        for name, side, value, limit in taken
    ]
    return {
        "name": METRIC_NAMES[metric],
        "unit": f"{unit}, lower is better" if unit == "perplexity" else unit,
        "rows": rows,
        "axis": charts.axis(scale),
        "noise": noise,
        "verdict": _against_noise([(name, value) for name, side, value, _ in taken if side == "reduced"], noise),
        "limits": any(row["limit"] is not None for row in rows),
    }


def _against_noise(reduced: Sequence[tuple[str, Reading]], noise: Reading | None) -> str:
    """Whose interval lies apart from the dense model's own, and by how much, in a sentence or two."""
    if noise is None or noise.low is None or noise.high is None:
        return ""
    apart: list[str] = []
    within: list[str] = []
    for name, value in reduced:
        if value.low is None or value.high is None:
            continue
        if value.high < noise.low or value.low > noise.high:
            apart.append(f"{name} (by {abs(value.value - noise.value):.2g})")
        else:
            within.append(name)
    said = [f"Beyond that noise: {', '.join(apart)}."] if apart else []
    said += [f"Not to be told from it: {', '.join(within)}."] if within else []
    return " ".join(said)


def steps(report: Report) -> dict[str, Any]:
    """The steps in PyTorch, then those of each artifact; size and quality on one scale, latency on one per runtime."""
    groups: dict[str, list[StepLine]] = {}
    for line in report.steps:
        groups.setdefault("" if line.stage == "reduce" else line.name.partition(": ")[0], []).append(line)
    sizes = [float(v) for line in report.steps for v in (line.bytes_before, line.bytes_after) if v is not None]
    quality = [line.quality for line in report.steps if isinstance(line.quality, Reading)]
    noise = report.repeatability.get("quality")
    if isinstance(noise, Reading):
        quality.append(noise)
    ends = [end for value in quality for end in (value.value, value.low, value.high) if end is not None]
    ceiling = 1.0 if all(value.unit in SHARES for value in quality) else None
    scale = charts.span(ends, ceiling=ceiling) if ends else (0.0, 1.0)
    return {
        "groups": [_group(name, lines, max(sizes, default=0.0), scale, noise) for name, lines in groups.items()],
        "scale": f"The quality scale runs from {show_value(scale[0])} to {show_value(scale[1])}." if ends else "",
    }


def _group(
    name: str, lines: Sequence[StepLine], most: float, scale: tuple[float, float], noise: AnyReading | None
) -> dict[str, Any]:
    slowest = max((line.latency_ms.value for line in lines if isinstance(line.latency_ms, Reading)), default=0.0)

    def dot(value: AnyReading | None, kind: str) -> Markup:
        if not isinstance(value, Reading):
            return Markup("")
        return charts.interval(value.value, value.low, value.high, scale, kind)

    rows = []
    if not name and lines and lines[0].bytes_before is not None:
        rows.append(
            {
                "name": "dense model",
                "why": "as given, against itself",
                "chip": "",
                "bytes": lines[0].bytes_before,
                "change": "",
                "bar": charts.bar(lines[0].bytes_before, most, "dense"),
                "latency": None,
                "latency_bar": "",
                "quality": noise,
                "dot": dot(noise, "dense"),
                "seconds": None,
            }
        )
    for line in lines:
        chip = "rolled back" if line.rolled_back else "" if line.changed else "unchanged"
        latency = line.latency_ms
        rows.append(
            {
                "name": line.name.partition(": ")[2] or line.name,
                "why": line.why,
                "chip": chip,
                "bytes": line.bytes_after,
                "change": change(line.bytes_before, line.bytes_after),
                "bar": charts.bar(line.bytes_after, most, "reduced") if line.bytes_after and not chip else "",
                "latency": latency,
                "latency_bar": charts.bar(latency.value, slowest, "reduced") if isinstance(latency, Reading) else "",
                "quality": line.quality,
                "dot": dot(line.quality, "reduced"),
                "seconds": line.seconds,
            }
        )
    where = "In PyTorch (weights as float32)" if not name else f"Artifact {name}"
    return {"title": where, "rows": rows}
