"""Samples that a search judges by and does not calibrate on, and the readings it takes on them.

A classifier is judged by labels where the data it is given has them: those of its calibration batches (the one-line
functions), else of its training data (recipes). All other models are judged without labels. What calibrates is never
what judges, and the evaluation part is looked at by neither: it is kept for the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgeredux.batching import batches, length, singles
from edgeredux.errors import DataError, RecipeError, unknown
from edgeredux.model import Model
from edgeredux.quality import Yardstick, judge_answers
from edgeredux.readings import AnyReading, Missing, ratio
from edgeredux.recipe import METRICS
from edgeredux.report import Check
from edgeredux.seams import Feed, ReduceContext
from edgeredux.yardstick import rows

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_FEWEST = 4  # samples to judge by
_BATCH = 32  # of them through the model together
# Names of a limit by task, as in a budget.
_OF_OUTPUTS = ("quality", "quality_ratio")
LIMITS: Mapping[str, tuple[str, ...]] = {
    "embedding": (*_OF_OUTPUTS, "agreement_top1"),
    "classification": (*_OF_OUTPUTS, "agreement_top1"),
    "causal-lm": ("perplexity", "perplexity_ratio", "agreement_top1"),
    "generic": _OF_OUTPUTS,
}


def check_limit(limit: Mapping[str, float], task: str, where: str) -> None:
    """Raise RecipeError for a metric that models of this task do not have."""
    for name in limit:
        if name not in LIMITS[task]:
            raise RecipeError(unknown("limit", name, LIMITS[task], f"{where}: task {task}"))


def hold_out(context: ReduceContext, model: Model, every: int, samples: int) -> tuple[ReduceContext, list[Feed]]:
    """The context without what is held out, and that: every `every`-th calibration sample, at most `samples`.

    Of a classifier whose training data alone has labels the first training samples are held out, and all calibration
    samples stay. Raises DataError when fewer than four samples would judge or none would calibrate.
    """
    labelled = [
        bool(feeds) and model.task == "classification" and all("labels" in feed for feed in feeds)
        for feeds in (context.calibration, context.training)
    ]
    if labelled == [False, True]:
        given = singles(model, context.training)
        held, rest = given[:samples], list(context.calibration)
    else:
        given = singles(model, context.calibration)
        held = given[every - 1 :: every][:samples]
        left = [sample for place, sample in enumerate(given) if place % every != every - 1]
        rest = batches(model, left, next(iter(context.calibration[0].values())).shape[0]) if left else []
    if len(held) < _FEWEST:
        raise DataError(
            f"data: of {len(given)} samples {len(held)} would be held out to judge by; at least {_FEWEST} are needed, "
            "so give more"
        )
    if not rest:
        raise DataError("data: there is no calibration data beside what is held out to judge by")
    return replace(context, calibration=rest), held


class Judge:
    """The dense model's answers to held-out samples, and how any other model's compare, by the task's own metric."""

    def __init__(self, dense: Model, samples: Sequence[Feed], seed: int) -> None:
        """`samples` one by one, as `hold_out` gives them; with "labels" in all of them a classifier is judged by those.

        Raises DataError for labels that are no whole numbers.
        """
        self._feeds = batches(dense, sorted(samples, key=length), _BATCH)
        self._seed = seed
        labels = None
        if dense.task == "classification" and all("labels" in feed for feed in self._feeds):
            labels = tuple(_number(label) for feed in self._feeds for label in feed["labels"].reshape(-1))
        self._yardstick = Yardstick(
            dense.task, tuple(self._feeds), tuple(self._answers(dense)), labels, dense.pooling, dense.output_names
        )
        self._how = f"PyTorch float32, {len(samples)} samples held out of the calibration"
        self.samples = len(samples)
        self._of_dense = self._judged(self._yardstick.reference)
        self.dense = self._named(self._of_dense)

    def readings(self, model: Model) -> dict[str, AnyReading]:
        """Every metric that LIMITS names for the task; quality and perplexity with a 95 % interval."""
        return self._named(self._judged(self._answers(model)))

    def _judged(self, answers: Sequence[Array]) -> dict[str, AnyReading]:
        return judge_answers(self._yardstick, answers, "measured", self._how, self._seed)

    def _named(self, found: Mapping[str, AnyReading]) -> dict[str, AnyReading]:
        name = "perplexity" if self._yardstick.lower_is_better else "quality"
        share = ratio(found["quality"], self._of_dense["quality"], f"reduced / dense {name}")
        known = {**found, name: found["quality"], f"{name}_ratio": share}
        return {
            metric: known.get(metric, Missing(f"{metric}: it could not be taken"))
            for metric in LIMITS[self._yardstick.task]
        }

    def checks(self, model: Model, limit: Mapping[str, float]) -> tuple[Check, ...]:
        """Each limit with the model's reading."""
        found = self.readings(model)
        return tuple(Check(name, float(value), METRICS[name], found[name]) for name, value in limit.items())

    def _answers(self, model: Model) -> list[Array]:
        return [answer for feed in self._feeds for answer in rows(model, model.run(feed), feed)]


def _number(label: Any) -> int:
    if label.dtype.kind not in "iu":
        raise DataError(f"data: labels must be whole numbers, not {label.dtype}")
    return int(label)
