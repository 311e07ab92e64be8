"""Small charts as inline SVG: no script, no request, legible in light and dark, on paper and on a phone.

Lengths along the chart are per cent of its width, heights are pixels, and every label is HTML beside the drawing, so
text keeps its size whatever the width. Colours are classes of the page's style sheet. A drawing whose numbers stand
beside it is hidden from screen readers; one that shows more than that has a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from edgeredux.readings import percentile

_BINS = 140


def bar(value: float, top: float, kind: str) -> Markup:
    """One horizontal bar of class `kind` on a track that ends at `top`."""
    share = 0.0 if top <= 0 else min(1.0, max(0.0, value / top))
    width = max(share * 100, 0.5 if value > 0 else 0.0)
    return _draw(
        f'<rect class="track" width="100%" height="8" rx="2"/>'
        f'<rect class="{escape(kind)}" width="{width:.2f}%" height="8" rx="2"/>',
        8,
    )


def interval(
    value: float,
    low: float | None,
    high: float | None,
    scale: tuple[float, float],
    kind: str,
    band: tuple[float, float] | None = None,
    limit: float | None = None,
) -> Markup:
    """A point with its interval on `scale`, over the band of the dense model's own noise, beside the limit asked."""
    place = _placer(scale)
    parts = ['<line class="guide" x1="0" x2="100%" y1="11" y2="11"/>']
    if band is not None:
        left, right = place(band[0]), place(band[1])
        parts.append(f'<rect class="band" x="{left:.2f}%" width="{max(0.5, right - left):.2f}%" height="22"/>')
    if limit is not None and scale[0] <= limit <= scale[1]:
        parts.append(f'<line class="limit" x1="{place(limit):.2f}%" x2="{place(limit):.2f}%" y1="0" y2="22"/>')
    if low is not None and high is not None:
        ends = f'x1="{place(low):.2f}%" x2="{place(high):.2f}%"'
        parts.append(f'<line class="whisker {escape(kind)}" {ends} y1="11" y2="11"/>')
    parts.append(f'<circle class="{escape(kind)}" cx="{place(value):.2f}%" cy="11" r="4.5"/>')
    return _draw("".join(parts), 22)


def axis(scale: tuple[float, float], unit: str = "") -> Markup:
    """Tick labels for `scale`; the unit stands after the last one."""
    place = _placer(scale)
    marks = ticks(*scale)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    parts = []
    for index, mark in enumerate(marks):
        x = place(mark)
        said = f"{mark:,.{digits}f}" + (f" {unit}" if unit and index == len(marks) - 1 else "")
        parts.append(f'<line class="guide" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="4"/>')
        parts.append(f'<text x="{x:.2f}%" y="16" text-anchor="middle">{escape(said)}</text>')
    return _draw("".join(parts), 20)


def histogram(samples: Sequence[float], scale: tuple[float, float], kind: str) -> Markup:
    """How often which value came, mirrored about the middle; p10 to p90 as a band, the median as a line."""
    place = _placer(scale)
    counts = [0] * _BINS
    for value in samples:
        if scale[0] <= value <= scale[1]:
            counts[min(_BINS - 1, int(place(value) / 100 * _BINS))] += 1
    most = max(counts) or 1
    p10, median, p90 = (place(percentile(samples, share)) for share in (0.1, 0.5, 0.9))
    parts = ['<line class="guide" x1="0" x2="100%" y1="22" y2="22"/>']
    band = f'x="{p10:.2f}%" width="{max(0.3, p90 - p10):.2f}%"'
    parts.append(f'<rect class="{escape(kind)} faint" {band} y="2" height="40"/>')
    for index, count in enumerate(counts):
        if count:
            half = 3 + 15 * count / most
            spot = (
                f'x="{100 * index / _BINS:.2f}%" y="{22 - half:.1f}" width="{90 / _BINS:.2f}%" height="{2 * half:.1f}"'
            )
            parts.append(f'<rect class="{escape(kind)}" {spot} rx="1"/>')
    parts.append(f'<line class="median" x1="{median:.2f}%" x2="{median:.2f}%" y1="0" y2="44"/>')
    return _draw("".join(parts), 44)


def trace(series: Sequence[tuple[str, Sequence[float]]], top: float) -> Markup:
    """Values in the order in which they came, one line of its class a series, on a scale from 0 to `top`."""
    parts = []
    for kind, samples in series:
        step = 100 / max(1, len(samples) - 1)
        points = " ".join(f"{i * step:.2f},{100 - 100 * min(v, top) / top:.2f}" for i, v in enumerate(samples))
        parts.append(f'<polyline class="{escape(kind)}" points="{points}"/>')
    inner = "".join(parts)
    return Markup(  # noqa: S704 - numbers and escaped class names only
        f'<svg class="trace" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{inner}</svg>'
    )


def curves(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    across: tuple[float, float],
    up: tuple[float, float],
    height: int,
    *,
    limit: float | None = None,
    marks: Sequence[tuple[str, float, float]] = (),
    grid: bool = True,
) -> Markup:
    """Lines through points (x, y), each (class, points), the first lowest; `limit` lies across, `marks` on top.

    A `grid` line stands at each round y with its value; the x axis is drawn by `axis` below.
    """
    x, y = _placer(across), _placer(up)
    parts = []
    for mark in ticks(*up, wanted=4) if grid else ():
        place = f"{100 - y(mark):.2f}%"
        parts.append(f'<line class="guide" x1="0" x2="100%" y1="{place}" y2="{place}"/>')
        parts.append(f'<text x="0" y="{place}" dy="-3">{mark:,.4g}</text>')
    if limit is not None and up[0] <= limit <= up[1]:
        place = f"{100 - y(limit):.2f}%"
        parts.append(f'<line class="limit" x1="0" x2="100%" y1="{place}" y2="{place}"/>')
    lines = []
    for kind, points in series:
        line = " ".join(f"{x(a):.2f},{100 - y(b):.2f}" for a, b in points)
        lines.append(f'<polyline class="{escape(kind)}" points="{line}"/>')
    box = 'width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true"'
    parts.append(f"<svg {box}>{''.join(lines)}</svg>")
    for kind, a, b in marks:
        parts.append(f'<circle class="{escape(kind)}" cx="{x(a):.2f}%" cy="{100 - y(b):.2f}%" r="4"/>')
    return _draw("".join(parts), height)


def shares(parts: Sequence[tuple[float, str]]) -> Markup:
    """Parts of a whole side by side, each (amount, class)."""
    whole = sum(amount for amount, _ in parts) or 1.0
    left, drawn = 0.0, []
    for amount, kind in parts:
        width = 100 * amount / whole
        if amount > 0:
            drawn.append(f'<rect class="{escape(kind)}" x="{left:.2f}%" width="{max(0.6, width):.2f}%" height="16"/>')
        left += width
    return _draw("".join(drawn), 16)


def span(ends: Sequence[float], *, ceiling: float | None = None) -> tuple[float, float]:
    """A scale that holds every value with some air around, but none above a ceiling that no value passes."""
    low, high = min(ends), max(ends)
    air = (high - low) * 0.06 or abs(high) * 0.02 or 1.0
    top = high + air
    return low - air, min(top, ceiling) if ceiling is not None and high <= ceiling else top


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values between low and high, about `wanted` of them, steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _placer(scale: tuple[float, float]) -> Callable[[float], float]:
    low, high = scale
    return lambda value: 100 * min(1.0, max(0.0, (value - low) / (high - low)))


def _draw(inner: str, height: int) -> Markup:
    return Markup(f'<svg width="100%" height="{height}" aria-hidden="true">{inner}</svg>')  # noqa: S704 - escaped above
