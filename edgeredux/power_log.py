"""Mean power from a log of samples against wall-clock time, as a bench supply or a Joulescope writes it.

A log is believed where its clock ran on, its sensor moved, and at least 20 samples lie in the window.
"""

from __future__ import annotations

import csv
import datetime
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

SAMPLES = 20
GAP = 10.0  # times the median interval: longer, and the clock jumped or samples were lost
_TIMES = ("time", "timestamp", "utc", "datetime", "date", "seconds", "t")
_UNITS = {"": 1.0, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3, "k": 1e3}


class Unusable(Exception):
    """Why a log gives no number for a window."""


@dataclass(frozen=True)
class PowerLog:
    """Samples in the file's order: seconds since 1970, and watts, or joules so far where `counts`."""

    seconds: Sequence[float]
    values: Sequence[float]
    counts: bool = False

    def mean_watts(self, begin: float, end: float) -> tuple[float, int]:
        """Mean power between two instants, and the samples in between. Raises Unusable.

        Power is integrated by the trapezoidal rule, its values at the two instants interpolated; a counter's
        difference is taken between its values there.
        """
        times = self.seconds
        for row, (before, after) in enumerate(pairwise(times)):
            if after <= before:
                raise Unusable(f"its clock jumped back by {before - after:.3f} s at sample {row + 2}")
        first, last = bisect_left(times, begin), bisect_right(times, end)
        inside = last - first
        if inside < SAMPLES:
            raise Unusable(f"{inside} samples in {end - begin:.2f} s; {SAMPLES} are needed")
        if first == 0 or last == len(times):
            raise Unusable("it does not cover the whole window")
        first, last = first - 1, last + 1  # with a neighbour on each side
        near = times[first:last]
        steps = sorted(after - before for before, after in pairwise(near))
        middle = steps[len(steps) // 2]
        if steps[-1] > GAP * middle:
            raise Unusable(
                f"its clock jumped ahead by {steps[-1]:.3f} s, or samples were lost (interval {middle:.3g} s)"
            )
        values = self.values[first:last]
        if min(values) == max(values):
            raise Unusable(f"its sensor stood still for {end - begin:.2f} s")
        if self.counts:
            for before, after in pairwise(values):
                if after < before:
                    raise Unusable("its counter went back: it wrapped, or was reset")
            joules = _at(near, values, end) - _at(near, values, begin)
        else:
            joules = _integral(near, values, begin, end)
        return joules / (end - begin), inside

    def interval_s(self) -> float:
        """Median time between samples; infinite for fewer than two."""
        steps = sorted(after - before for before, after in pairwise(self.seconds))
        return steps[len(steps) // 2] if steps else math.inf


def _at(times: Sequence[float], values: Sequence[float], when: float) -> float:
    place = min(max(bisect_left(times, when), 1), len(times) - 1)
    share = (when - times[place - 1]) / (times[place] - times[place - 1])
    return values[place - 1] + share * (values[place] - values[place - 1])


def _integral(times: Sequence[float], values: Sequence[float], begin: float, end: float) -> float:
    inner = [(t, v) for t, v in zip(times, values, strict=True) if begin < t < end]
    points = [(begin, _at(times, values, begin)), *inner, (end, _at(times, values, end))]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


def read(path: Path) -> PowerLog:
    """The log of a CSV file. Raises Unusable with the columns that are wanted when it has none of them.

    A time column (seconds, milliseconds, micro- or nanoseconds since 1970, or ISO 8601) and one of: power in W or mW;
    voltage and current; energy in J, which counts. A last line that is not whole yet is left out.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as problem:
        raise Unusable(f"cannot be read: {problem.strerror}") from problem
    lines = text[: text.rfind("\n") + 1].splitlines()
    lettered = [index for index, line in enumerate(lines) if any(letter.isalpha() for letter in line)]
    if not lettered:
        raise Unusable("it has no line of column names")
    head = next((index for index in lettered if any(map(_is_time, _columns(lines[index])[0]))), lettered[0])
    columns, mark = _columns(lines[head])
    time_at = next((place for place, name in enumerate(columns) if _is_time(name)), None)
    if time_at is None:
        raise Unusable(f"no column is a time ({', '.join(columns)}); wanted: {', '.join(_TIMES)}")
    kind, factors = _value_columns(columns)
    seconds, values = [], []
    for number, row in enumerate(csv.reader(lines[head + 1 :], delimiter=mark), head + 2):
        if not row or row[0].lstrip().startswith("#"):
            continue
        try:
            when = _seconds(row[time_at].strip())
            values.append(math.prod(float(row[place]) * factor for place, factor in factors))
        except (ValueError, IndexError) as problem:
            raise Unusable(f"line {number} does not read as numbers ({mark.join(row)[:60]!r})") from problem
        seconds.append(when)
    if seconds and seconds[0] < 1e8:
        raise Unusable("its times start at about zero: no instant of a clock, so it cannot be aligned")
    return PowerLog(seconds, values, counts=kind == "energy")


def _columns(line: str) -> tuple[list[str], str]:
    title = line.lstrip("# ")
    mark = max(",;\t", key=title.count)
    return [name.strip().strip('"').lower() for name in title.split(mark)], mark


def _is_time(column: str) -> bool:
    return column.replace("(", " ").replace("[", " ").replace("_", " ").split(" ")[0] in _TIMES


def _value_columns(columns: Sequence[str]) -> tuple[str, list[tuple[int, float]]]:
    def find(words: tuple[str, ...], letter: str) -> tuple[int, float] | None:
        for place, name in enumerate(columns):
            word = name.replace("mean ", "").replace("(", " ").replace("[", " ").replace("_", " ").split()
            if word and word[0] in words:
                unit = word[-1].rstrip(")]") if len(word) > 1 else letter
                scale = _UNITS.get(unit.removesuffix(letter)) if unit.endswith(letter) else None
                return place, 1.0 if scale is None else scale
        return None

    power = find(("power", "watts", "watt", "p"), "w")
    if power is not None:
        return "power", [power]
    volts, amperes = find(("voltage", "volts", "v", "u"), "v"), find(("current", "amps", "amperes", "i"), "a")
    if volts is not None and amperes is not None:
        return "power", [volts, amperes]
    energy = find(("energy", "joules"), "j")
    if energy is not None:
        return "energy", [energy]
    raise Unusable(f"no power, no voltage and current, no energy among its columns ({', '.join(columns)})")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return datetime.datetime.fromisoformat(text).timestamp()
    for limit, factor in ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3)):
        if value >= limit:
            return value * factor
    return value
