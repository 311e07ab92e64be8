"""Small charts as inline SVG: no script, no request, legible in light and dark and on paper.

Every chart has a title element for those who cannot see it; colours come from the page's CSS classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from edgeredux.readings import percentile

_WIDTH = 640


@dataclass(frozen=True)
class Bar:
    """One bar: its label, value, the text at its end, and its CSS class."""

    label: str
    value: float
    text: str
    kind: str


def bars(title: str, rows: Sequence[Bar]) -> Markup:
    """Horizontal bars on one scale from zero. Empty markup without rows."""
    if not rows:
        return Markup("")
    top = max(row.value for row in rows) or 1.0
    height = 26 * len(rows) + 4
    parts = [_open(title, height)]
    for index, row in enumerate(rows):
        y = 26 * index + 2
        width = max(1.0, 290 * row.value / top)
        parts.append(f'<text class="lab" x="196" y="{y + 15}" text-anchor="end">{_cut(row.label, 30)}</text>')
        parts.append(f'<rect class="{escape(row.kind)}" x="204" y="{y}" width="{width:.1f}" height="20" rx="3"/>')
        parts.append(f'<text class="val" x="{210 + width:.1f}" y="{y + 15}">{escape(row.text)}</text>')
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704 - every text above is escaped


@dataclass(frozen=True)
class Span:
    """A value with an interval, and where the interval's ends are unknown, just the value."""

    label: str
    value: float
    low: float | None
    high: float | None
    kind: str


def intervals(title: str, rows: Sequence[Span], text: str) -> Markup:
    """Points with 95 % intervals on a common scale that fits them all."""
    if not rows:
        return Markup("")
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    low, high = min(ends), max(ends)
    pad = (high - low) * 0.08 or 0.01
    low, high = low - pad, high + pad

    def place(value: float) -> float:
        return 210 + 330 * (value - low) / (high - low)

    height = 26 * len(rows) + 26
    parts = [_open(title, height)]
    for index, row in enumerate(rows):
        y = 26 * index + 13
        parts.append(f'<text class="lab" x="196" y="{y + 4}" text-anchor="end">{_cut(row.label, 30)}</text>')
        if row.low is not None and row.high is not None:
            parts.append(f'<line class="rule" x1="{place(row.low):.1f}" x2="{place(row.high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{escape(row.kind)}" cx="{place(row.value):.1f}" cy="{y}" r="5"/>')
        parts.append(f'<text class="val" x="552" y="{y + 4}">{row.value:.4f}</text>')
    y = 26 * len(rows) + 14
    parts.append(f'<text class="axis" x="210" y="{y}">{low:.3f}</text>')
    parts.append(f'<text class="axis" x="540" y="{y}" text-anchor="end">{high:.3f} {escape(text)}</text>')
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704 - every text above is escaped


def distributions(title: str, series: Sequence[tuple[str, str, Sequence[float]]], unit: str) -> Markup:
    """Every sample as a tick, the median as a long one, the p10 to p90 band behind; one row a series."""
    rows = [(label, kind, list(samples)) for label, kind, samples in series if samples]
    if not rows:
        return Markup("")
    shown = [value for _, _, samples in rows for value in samples if value <= 1.25 * percentile(samples, 0.95)]
    high = max(shown) * 1.05

    def place(value: float) -> float:
        return 110 + 430 * min(value, high) / high

    height = 34 * len(rows) + 22
    parts = [_open(title, height)]
    for index, (label, kind, samples) in enumerate(rows):
        y = 34 * index + 4
        p10, median, p90 = (percentile(samples, share) for share in (0.1, 0.5, 0.9))
        width = max(1.0, place(p90) - place(p10))
        parts.append(f'<text class="lab" x="102" y="{y + 17}" text-anchor="end">{_cut(label, 16)}</text>')
        parts.append(
            f'<rect class="{escape(kind)} faint" x="{place(p10):.1f}" y="{y}" width="{width:.1f}" height="26"/>'
        )
        for value in samples[:400]:
            x = place(value)
            parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{y + 8}" y2="{y + 18}"/>')
        x = place(median)
        parts.append(f'<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 26}"/>')
        parts.append(f'<text class="val" x="552" y="{y + 17}">{median:.2f} {escape(unit)}</text>')
    y = 34 * len(rows) + 14
    parts.append(f'<text class="axis" x="110" y="{y}">0</text>')
    parts.append(f'<text class="axis" x="540" y="{y}" text-anchor="end">{high:.1f} {escape(unit)}</text>')
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704 - every text above is escaped


def shares(title: str, rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]]) -> Markup:
    """Stacked bars of parts of a whole: one row each of (part label, amount, CSS class)."""
    rows = [(label, parts) for label, parts in rows if sum(amount for _, amount, _ in parts) > 0]
    if not rows:
        return Markup("")
    parts = [_open(title, 40 * len(rows) + 2)]
    for index, (label, pieces) in enumerate(rows):
        total = sum(amount for _, amount, _ in pieces)
        x, y = 110.0, 40 * index + 2
        parts.append(f'<text class="lab" x="102" y="{y + 15}" text-anchor="end">{_cut(label, 16)}</text>')
        said = []
        for name, amount, kind in pieces:
            width = 430 * amount / total
            parts.append(f'<rect class="{escape(kind)}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="18"/>')
            said.append(f"{name} {amount:g} ({amount / total:.1%})")
            x += width
        parts.append(f'<text class="axis" x="110" y="{y + 32}">{_cut(" · ".join(said), 90)}</text>')
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704 - every text above is escaped


def _open(title: str, height: int) -> str:
    return f'<svg role="img" viewBox="0 0 {_WIDTH} {height}" class="chart"><title>{escape(title)}</title>'


def _cut(text: str, size: int) -> Markup:
    return escape(text if len(text) <= size else text[: size - 1] + "…")
