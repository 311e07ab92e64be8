"""Results as lines of text: ours beside the authors', and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from reduction.costs import LIMIT, Cost
from reduction.pruned import Case
from reduction.references import Reference, best, find
from reduction.stsb import Quality

HEAD = (
    f"{'zeros':>5}  {'pattern':12} {'method':19} {'Spearman':>8} {'authors':>8}  {'cosine':>6} {'authors':>7}  "
    f"{'seconds':>7}  verdict (ours against the authors', noise = 2 sd)"
)


@dataclass(frozen=True)
class Row:
    """One pruned model's quality on dev."""

    case: Case
    quality: Quality
    zeros: float  # exact zeros over weights of the prunable layers
    seconds: float

    @property
    def reference(self) -> Reference | None:
        """The authors' figures for the same case."""
        same = self.case.allocation == "uniform" and self.case.reference == "layer"
        return find(self.case.zeros, self.case.pattern, self.case.method) if same else None

    def verdicts(self) -> dict[str, str]:
        """above, within noise or BELOW, by measure, where the authors have a dev figure."""
        asked, quality = self.reference, self.quality
        if asked is None or asked.split != "dev":
            return {}
        return {
            "Spearman": verdict(quality.spearman - asked.spearman, quality.spearman_noise),
            "cosine": verdict(quality.cosine - asked.cosine, quality.cosine_noise),
        }

    def text(self) -> str:
        """One line of the table."""
        asked = self.reference
        said = ["", ""]
        if asked is not None:
            mark = "" if asked.split == "dev" else "t"
            said = [f"{asked.spearman:.4f}{mark}", f"{asked.cosine:.3f}{mark}"]
        notes = ", ".join(f"{name} {value}" for name, value in self.verdicts().items())
        if asked is not None and asked.split == "test":
            notes = "t: authors' figures are of the test split only, not comparable row by row"
        return (
            f"{100 * self.zeros:4.1f}%  {self.case.pattern:12} {self.case.title:19} {self.quality.spearman:8.4f} "
            f"{said[0]:>8}  {self.quality.cosine:6.3f} {said[1]:>7}  {self.seconds:7.1f}  {notes}"
        ).rstrip()

    def to_json(self) -> dict[str, Any]:
        """Case, quality, reference and verdicts by name."""
        asked = self.reference
        return {
            **vars(self.case),
            "exact_zeros": self.zeros,
            "seconds": round(self.seconds, 2),
            **self.quality.to_json(),
            "authors": vars(asked) if asked is not None else None,
            "verdicts": self.verdicts(),
        }


def verdict(difference: float, noise: float) -> str:
    """Against zero, `noise` being one standard deviation."""
    if difference < -2 * noise:
        return "BELOW"
    return "above" if difference > 2 * noise else "within noise"


def best_lines(rows: list[Row]) -> Iterator[tuple[str, bool]]:
    """Our best against the authors' best, by zeros, pattern and measure, with whether it is at least within noise."""
    for zeros, pattern in dict.fromkeys((row.case.zeros, row.case.pattern) for row in rows):
        asked = best(zeros, pattern)
        if asked is None:
            continue
        group = [row for row in rows if (row.case.zeros, row.case.pattern) == (zeros, pattern)]
        for name, limit in zip(("spearman", "cosine"), asked, strict=True):
            ours, top = max(((getattr(row.quality, name), row) for row in group), key=itemgetter(0))
            said = verdict(ours - limit, getattr(top.quality, f"{name}_noise"))
            yield (
                f"best {name} at {zeros:.0%} {pattern}: {ours:.4f} ({top.case.title}), authors' {limit:.4f}: {said}",
                said != "BELOW",
            )


def cost_text(cost: Cost) -> str:
    """One line on what a method costs."""
    low, high = cost.passes_spread
    return (
        f"{cost.method:10} {cost.passes:5.2f} plain forward passes ({low:.2f} to {high:.2f}; at most {LIMIT}) "
        f"+ {cost.solve_seconds:.2f} s of solves = {cost.seconds:.2f} s; one pass {cost.forward_seconds:.2f} s: "
        f"{'kept' if cost.passed else 'MISSED'}"
    )


def in_order(perplexities: Mapping[str, Mapping[str, float]], text: str) -> bool:
    """SparseGPT <= Wanda <= magnitude on one text."""
    return perplexities["sparsegpt"][text] <= perplexities["wanda"][text] <= perplexities["magnitude"][text]
