"""How much each layer minds losing weights: one curve a layer, as a step's details, report and CSV file hold it.

The CSV has Distiller's columns where the two mean the same (parameter, sparsity, loss) and reads its published tables:
there `top1` is the quality, and the loss is the task's own, not the distance from the dense model.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgeredux.errors import DataError, one_line

# zeros, quality, loss, relative error, task loss
Point: TypeAlias = tuple[float, float, float, "float | None", "float | None"]
COLUMNS = ("parameter", "sparsity", "quality", "relative_error", "loss", "task_loss")


@dataclass(frozen=True)
class LayerCurve:
    """What happens to the model when this layer alone has `zeros`; all sequences by rising level of zeros."""

    layer: str
    weights: int | None  # how many share the zeros; None where the table does not say
    zeros: tuple[float, ...]  # the exact shares, floor(level * steps) steps
    loss: tuple[float, ...]
    quality: tuple[float, ...]
    relative_error: tuple[float | None, ...]  # ||X (W - W')||^2 / ||X W||^2 of the layer's own output
    task_loss: tuple[float, ...] = ()  # the task's own, nats; empty where the truth is not known

    def sensitivity(self, rest: float = 0.0) -> float:
        """Mean loss above `rest` (that of the dense model) between no zeros and the most that were tried."""
        places, losses = (0.0, *self.zeros), (rest, *self.loss)
        if places[-1] == 0:
            return 0.0
        area = sum(
            (losses[i] + losses[i + 1] - 2 * rest) / 2 * (places[i + 1] - places[i]) for i in range(len(places) - 1)
        )
        return area / places[-1]


@dataclass(frozen=True)
class SensitivityTable:
    """The curves of all scanned layers, in the model's order, and what their numbers are.

    `dense_loss`, `dense_quality`, `dense_task_loss`: of the dense model itself; 0 and 1 where taken against it.
    """

    curves: tuple[LayerCurve, ...]
    loss_unit: str
    quality_unit: str
    how: str  # method, pattern, data
    dense_loss: float = 0.0
    dense_quality: float = 1.0
    dense_task_loss: float | None = None

    def by_sensitivity(self) -> list[LayerCurve]:
        """The layer that minds most first; ties in the model's order."""
        return sorted(self.curves, key=lambda curve: -curve.sensitivity(self.dense_loss))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "loss_unit": self.loss_unit,
            "quality_unit": self.quality_unit,
            "how": self.how,
            "dense_loss": self.dense_loss,
            "dense_quality": self.dense_quality,
            "dense_task_loss": self.dense_task_loss,
            "layers": [
                {
                    "layer": curve.layer,
                    "weights": curve.weights,
                    "zeros": list(curve.zeros),
                    "loss": list(curve.loss),
                    "quality": list(curve.quality),
                    "relative_error": list(curve.relative_error),
                    "task_loss": list(curve.task_loss),
                }
                for curve in self.curves
            ],
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> SensitivityTable:
        """The table that `to_json` wrote."""
        curves = tuple(
            LayerCurve(
                item["layer"],
                item["weights"],
                tuple(item["zeros"]),
                tuple(item["loss"]),
                tuple(item["quality"]),
                tuple(item["relative_error"]),
                tuple(item["task_loss"]),
            )
            for item in said["layers"]
        )
        names = ("loss_unit", "quality_unit", "how", "dense_loss", "dense_quality", "dense_task_loss")
        return cls(curves, *(said[name] for name in names))

    def to_csv(self) -> str:
        """One row a layer and level, the dense model (sparsity 0) first for each; the columns are COLUMNS."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for curve in self.curves:
            dense = (0.0, self.dense_quality, 0.0, self.dense_loss, self.dense_task_loss)
            task = curve.task_loss or (None,) * len(curve.zeros)
            for level in (dense, *zip(curve.zeros, curve.quality, curve.relative_error, curve.loss, task, strict=True)):
                writer.writerow([f"{curve.layer}.weight", *("" if value is None else repr(value) for value in level)])
        return out.getvalue()

    @classmethod
    def from_csv(cls, text: str, how: str) -> SensitivityTable:
        """A table of ours or of Distiller's.

        Raises DataError for other columns, for what is no number, and where the dense model's row (sparsity 0) or a
        layer's others are missing.
        """
        rows = list(csv.DictReader(io.StringIO(text)))
        columns = set(rows[0]) if rows else set()
        quality = next((name for name in ("quality", "top1") if name in columns), None)
        if quality is None or not {"parameter", "sparsity", "loss"} <= columns:
            found = ", ".join(sorted(map(str, columns))) or "no rows"
            raise DataError(f"sensitivity table: columns {found}. Needed: parameter, sparsity, loss, quality or top1")
        points: dict[str, list[Point]] = {}
        for row in rows:
            error, task = (_number(row[name]) if row.get(name) else None for name in ("relative_error", "task_loss"))
            points.setdefault(row["parameter"].removesuffix(".weight"), []).append(
                (_number(row["sparsity"]), _number(row[quality]), _number(row["loss"]), error, task)
            )
        dense = next((point for found in points.values() for point in found if point[0] == 0), None)
        if dense is None:
            raise DataError("sensitivity table: no row has sparsity 0, so nothing is known of the dense model")
        return cls(
            tuple(_curve(layer, found) for layer, found in points.items()),
            loss_unit="loss",
            quality_unit="top-1 accuracy, %" if quality == "top1" else "quality",
            how=how,
            dense_loss=dense[2],
            dense_quality=dense[1],
            dense_task_loss=dense[4],
        )


def _curve(layer: str, points: Sequence[Point]) -> LayerCurve:
    pruned = sorted((point for point in points if point[0] > 0), key=lambda point: point[0])
    if not pruned:
        raise DataError(f"sensitivity table: {layer} has no row with sparsity above 0")
    zeros, quality, loss, error, task = zip(*pruned, strict=True)
    return LayerCurve(layer, None, zeros, loss, quality, error, () if None in task else task)


def _number(text: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError) as problem:
        raise DataError(one_line(f"sensitivity table: {text!r} is no number")) from problem
    if not math.isfinite(value):
        raise DataError(f"sensitivity table: {text!r} is no finite number")
    return value
