"""What the report's page shows of one target: rows, charts and tables, from its TargetReport alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edgeredux import charts
from edgeredux.readings import Missing, Reading, percentile
from edgeredux.report import METRICS, RATIO_OF, TargetReport, show_value
from edgeredux.report_words import FACT_NAMES, metric_name, show_bytes, show_fact, unique

# What the cards show, in order; throughput says what latency says.
_CARD = ("latency_ms", "size_mb", "memory_mb", "energy_mj", "quality", "agreement_top1")
_LAYERS_SHOWN = 12
_PARTS_SHOWN = 8
_SIDES = ("dense", "reduced")


def view(target: TargetReport) -> dict[str, Any]:
    """What the template shows of one target."""
    metrics = [*METRICS, *(name for name in target.reduced if name not in METRICS)]
    rows = [_row(target, name) for name in metrics]
    taken = [row for row in rows if not (row["dense"] is None or row["absent"])]
    return {
        "report": target,
        "rows": rows,
        "card": sorted((row for row in taken if row["metric"] in _CARD), key=lambda row: _CARD.index(row["metric"])),
        "absent": _grouped_absent(rows),
        "how": _how(rows),
        "latency": latency_charts(target),
        "placement": [_placement(target, side) for side in _SIDES if target.placement.get(side)],
        "fallbacks": _by_kind(target.fallbacks.get("reduced", ())),
        "drawn": [found for name in _mappings(target) if (found := _paired(target, name))["rows"]],
        "plain": _plain_facts(target),
        "layers": layer_table(target),
        "noise": _noise(target),
        "machine": _machine(target),
    }


def _row(target: TargetReport, metric: str) -> dict[str, Any]:
    dense = target.dense.get(metric, Missing("nobody took it"))
    reduced = target.reduced.get(metric, Missing("nobody took it"))
    ratio = target.ratios.get(RATIO_OF.get(metric, ""))
    top = max((value.value for value in (dense, reduced) if isinstance(value, Reading)), default=0.0)
    drawn = metric in RATIO_OF and metric != "quality"
    found = {side: value for side, value in (("dense", dense), ("reduced", reduced)) if isinstance(value, Reading)}
    return {
        "metric": metric,
        "dense": dense,
        "reduced": reduced,
        "ratio": ratio if isinstance(ratio, Reading) else None,
        "absent": isinstance(dense, Missing) and isinstance(reduced, Missing),
        "noisy": any(value.noisy for value in found.values()),
        "bars": [charts.bar(value.value, top, side) for side, value in found.items()] if drawn else [],
        "sources": unique("missing" if isinstance(v, Missing) else v.source for v in (reduced, dense)),
    }


def _grouped_absent(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(metric names, reason) of what neither side has, equal reasons together."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["absent"]:
            reasons.setdefault(row["reduced"].reason, []).append(metric_name(row["metric"]))
    return [(", ".join(names).capitalize(), reason) for reason, names in reasons.items()]


def _how(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(metric, side or empty, how) for every reading that says how it came to be."""
    found = []
    for row in rows:
        said = {side: row[side].how for side in _SIDES if isinstance(row[side], Reading) and row[side].how}
        name = metric_name(row["metric"])
        if len(set(said.values())) == 1 and len(said) == 2:
            found.append((name, "", said["reduced"]))
        else:
            found += [(name, side, text) for side, text in said.items()]
        if row["ratio"] is not None and row["ratio"].n > 1 and row["ratio"].how:
            found.append((name, "ratio", row["ratio"].how))
    return found


def latency_charts(target: TargetReport) -> dict[str, Any] | None:
    """The distribution of the raw samples and their order in time, both sides on one scale from zero."""
    series = {side: list(target.latency_samples.get(side, ())) for side in _SIDES}
    series = {side: values for side, values in series.items() if values}
    if not series:
        return None
    top = 1.05 * max(min(max(values), 1.5 * percentile(values, 0.95)) for values in series.values())
    if top <= 0:
        return None
    scale = (0.0, top)
    rows = [
        {
            "side": side,
            "drawn": charts.histogram(values, scale, side),
            "median": f"{show_value(percentile(values, 0.5))} ms",
            "beyond": sum(value > top for value in values),
            "n": len(values),
        }
        for side, values in series.items()
    ]
    return {
        "rows": rows,
        "axis": charts.axis(scale, "ms"),
        "trace": charts.trace(list(series.items()), top),
        "top": show_value(top),
    }


def _placement(target: TargetReport, side: str) -> dict[str, Any]:
    kinds = _placement_kinds(target)
    placed = sorted(target.placement[side].items(), key=lambda item: list(kinds).index(item[0]))
    whole = sum(count for _, count in placed) or 1
    parts = [
        {"name": name, "count": count, "share": f"{100 * count / whole:.1f} %", "kind": kinds[name]}
        for name, count in placed
    ]
    return {"side": side, "parts": parts, "drawn": charts.shares([(float(n), kinds[name]) for name, n in placed])}


def _placement_kinds(target: TargetReport) -> dict[str, str]:
    """The class of each place, the same on both sides: accelerators first, the CPU beside one in the warning colour."""
    most: Counter[str] = Counter()
    for side in _SIDES:
        most |= Counter(dict(target.placement.get(side, {})))
    names = sorted(set().union(*(target.placement.get(side, {}) for side in _SIDES)))
    names.sort(key=lambda name: ("CPU" in name, -most[name]))
    cpu = {name for name in names if "CPU" in name} if any("CPU" not in name for name in names) else set()
    others = iter((("part0", "part2", "part3") if cpu else ("part0", "part1", "part2", "part3")) * len(names))
    return {name: "part1" if name in cpu else next(others) for name in names}


def _by_kind(fallbacks: Sequence[str]) -> list[tuple[str, int, list[str]]]:
    """(kind, count, names) of the operators that fell back, most frequent first; "KIND x3" counts three of a kind."""
    counts: Counter[str] = Counter()
    names: dict[str, list[str]] = {}
    for item in fallbacks:
        kind, _, name = item.partition(" ")
        several = re.fullmatch(r"x(\d+)", name)
        counts[kind] += int(several[1]) if several else 1
        if name and not several:
            names.setdefault(kind, []).append(name)
    ordered = sorted(counts, key=lambda kind: (-counts[kind], kind))
    return [(kind, counts[kind], names.get(kind, [])) for kind in ordered]


def _is_numbers(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value.values())
    )


def _mappings(target: TargetReport) -> list[str]:
    return unique(name for side in _SIDES for name, v in target.facts.get(side, {}).items() if _is_numbers(v))


def _paired(target: TargetReport, name: str) -> dict[str, Any]:
    """A mapping of numbers as pairs of bars: bytes by memory, cycles by unit, operators by kind."""
    sides: dict[str, Mapping[Any, float]] = {}
    for side in _SIDES:
        value = target.facts.get(side, {}).get(name)
        sides[side] = dict(value) if isinstance(value, Mapping) and _is_numbers(value) else {}
    text = show_bytes if name.endswith("_bytes") else show_fact
    keys = unique(key for value in sides.values() for key in value)
    largest = {key: max(value.get(key, 0) for value in sides.values()) for key in keys}
    keys = sorted((key for key in keys if largest[key] > 0), key=lambda key: -largest[key])
    top = max(largest.values(), default=0)
    rows = [
        {
            "name": str(key).replace("_", " "),
            "pairs": [
                (side, charts.bar(value[key], top, side), text(value[key]))
                for side, value in sides.items()
                if key in value
            ],
        }
        for key in keys[:_PARTS_SHOWN]
    ]
    return {"title": _fact_name(name), "rows": rows, "left": max(0, len(keys) - _PARTS_SHOWN)}


def _fact_name(name: str) -> str:
    said = FACT_NAMES.get(name, str(name).replace("_", " "))
    return said[:1].upper() + said[1:]


def _plain_facts(target: TargetReport) -> list[tuple[str, list[str]]]:
    """(name, values): one value where both sides agree, else dense and reduced."""
    names = unique(name for side in _SIDES for name, v in target.facts.get(side, {}).items() if not _is_numbers(v))
    found = []
    for name in names:
        values = [show_fact(target.facts[s][name]) if name in target.facts.get(s, {}) else "–" for s in _SIDES]
        found.append((_fact_name(name), values[:1] if values[0] == values[1] else values))
    return found


def layer_table(target: TargetReport) -> dict[str, Any] | None:
    """The costliest layers of the reduced artifact, by cycles or time, and what share of all they are."""
    rows = [row for row in target.layers.get("reduced", ()) if row]
    if not rows:
        return None
    columns = list(rows[0])
    amounts = [name for name in columns if isinstance(rows[0][name], (int, float))]
    key = next((name for name in amounts if any(word in name.lower() for word in ("cycle", "time", "ms", "us"))), None)

    def cost(row: Mapping[str, Any]) -> float:
        value = row.get(key) if key is not None else None
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0

    shown = sorted(rows, key=lambda row: -cost(row))[:_LAYERS_SHOWN]
    whole = sum(cost(row) for row in rows)
    lines = [
        {
            "cells": [(show_fact(row.get(name)), name in amounts) for name in columns],
            "bar": charts.bar(cost(row), cost(shown[0]), "reduced"),
            "share": f"{100 * cost(row) / whole:.1f} %" if whole else "–",
        }
        for row in shown
    ]
    return {
        "columns": [(str(name).replace("_", " "), name in amounts) for name in columns],
        "key": None if key is None else str(key).replace("_", " "),
        "lines": lines,
        "all": len(rows),
        "covered": f"{100 * sum(map(cost, shown)) / whole:.0f} %" if whole else "",
    }


def _noise(target: TargetReport) -> str:
    """Why the latency of this target is called noisy; empty when it is not."""
    for value in (target.reduced.get("latency_ms"), target.dense.get("latency_ms")):
        if isinstance(value, Reading) and value.noisy:
            return value.how.partition("; noisy: ")[2] or "the run was noisy"
    return ""


def _machine(target: TargetReport) -> str:
    """What matters of the machine's state, in a line."""
    facts = target.machine
    said = []
    if "governor" in facts:
        said.append(f"governor {facts['governor']}")
    if "threads" in facts:
        said.append(
            f"{facts['threads']} of {facts['cores']} cores" if "cores" in facts else f"{facts['threads']} threads"
        )
    if "load_1m_before" in facts and "load_1m_after" in facts:
        said.append(f"load {facts['load_1m_before']} to {facts['load_1m_after']}")
    if "others_cores" in facts:
        said.append(f"others kept {facts['others_cores']} cores busy")
    if facts.get("throttle_events"):
        said.append(f"throttled {facts['throttle_events']} times")
    return ", ".join(said)
