"""How much of the dense model's behaviour is left, per task, each number with a paired bootstrap interval.

    embedding        quality = mean cosine to the dense embedding; agreement_top1 = share of held-out texts whose
                     nearest other text is the same (rank correlation with labels forgives what neighbours show)
    classification   quality = accuracy against labels, or agreement with the dense model's class without labels
    causal-lm        quality = perplexity per token (lower is better); agreement_top1 = same next token as dense
    generic          quality = mean cosine to the dense model's outputs

Intervals: percentile bootstrap over texts, 95 %, 1000 resamples (Efron & Tibshirani 1993, ch. 13), the same resamples
for dense and reduced, so that a difference is judged on the same texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeredux.errors import DataError
from edgeredux.readings import AnyReading, Missing, Reading, Source
from edgeredux.seams import Feed

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

RESAMPLES = 1000
NEXT_TOKENS = "next_tokens"  # an output that stands for a language model's logits: what `next_tokens` reads off them


@dataclass(frozen=True)
class Yardstick:
    """What quality is measured against: held-out inputs, the dense model's answers to them, labels if any."""

    task: str
    feeds: tuple[Feed, ...]
    reference: tuple[Array, ...]  # one per feed: what `answer` makes of the dense outputs
    labels: tuple[int, ...] | None
    pooling: str
    output_names: tuple[str, ...]
    # Where a step rewrote the tokenizer of a language model (edgeredux/retokenised.py):
    counted: tuple[bool, ...] | None = None  # one per feed: whether both models see the same text
    numbers: Array | None = None  # the dense model's number of each of this model's tokens

    @property
    def lower_is_better(self) -> bool:
        """True for perplexity."""
        return self.task == "causal-lm"

    @property
    def unit(self) -> str:
        """The unit of `quality`."""
        if self.task == "classification":
            return "accuracy" if self.labels is not None else "agreement with dense"
        return "perplexity" if self.task == "causal-lm" else "mean cosine to dense"


def answer(task: str, outputs: Feed, feed: Feed, names: Sequence[str], pooling: str) -> Array:
    """What the task reads off one feed's outputs: [batch, width] embeddings, classes, or flat output values.

    causal-lm: [batch, sequence, 2] = next-token log-probability and predicted token, only where the mask has text.
    Without an attention_mask every position is text.
    Raises DataError when an output is absent.
    """
    import numpy as np

    if task == "causal-lm" and NEXT_TOKENS in outputs:
        return outputs[NEXT_TOKENS]
    for name in names:
        if name not in outputs:
            raise DataError(f"the model gave no output {name!r}. It gave: {', '.join(outputs)}")
    first = outputs[names[0]]
    if task == "embedding":
        return pool(first, feed.get("attention_mask", np.ones(first.shape[:2], np.int64)), pooling)
    if task == "classification":
        return np.asarray(first.argmax(-1)).reshape(-1)
    if task == "causal-lm":
        tokens = feed["input_ids"]
        return next_tokens(first, tokens, feed.get("attention_mask", np.ones_like(tokens)))
    batch = first.shape[0] if first.ndim else 1
    return np.concatenate([outputs[name].reshape(batch, -1).astype(np.float64) for name in names], axis=1)


def pool(hidden: Array, mask: Array, pooling: str) -> Array:
    """Sentence embeddings [batch, width] of unit length, by mean over the masked positions or by the first token."""
    import numpy as np

    values = hidden.astype(np.float64)
    if pooling == "cls":
        pooled = values[:, 0]
    else:
        weights = mask[..., None].astype(np.float64)
        pooled = (values * weights).sum(1) / np.maximum(weights.sum(1), 1e-9)
    length = np.linalg.norm(pooled, axis=-1, keepdims=True)
    return np.asarray(pooled / np.where(length == 0, 1.0, length))


def without_logits(outputs: Feed, feed: Feed) -> Feed:
    """The same outputs, logits [batch, sequence, vocabulary] reduced to what `answer` would read off them.

    Logits of a large vocabulary are gigabytes a hundred texts. A file without that output keeps what it has.
    """
    if "logits" not in outputs:
        return outputs
    return {NEXT_TOKENS: answer("causal-lm", outputs, feed, ("logits",), "mean")}


def next_tokens(logits: Array, tokens: Array, mask: Array) -> Array:
    """[n, 2] over all predicted positions: log-probability of the true next token, and the predicted token."""
    import numpy as np

    values = logits[:, :-1].astype(np.float64)
    values = values - values.max(-1, keepdims=True)
    log_total = np.log(np.exp(values).sum(-1))
    true = np.take_along_axis(values, tokens[:, 1:, None], -1)[..., 0] - log_total
    rows = np.stack([true, values.argmax(-1).astype(np.float64)], -1)
    return np.asarray(rows[mask[:, 1:].astype(bool) & mask[:, :-1].astype(bool)])


def judge_outputs(
    yardstick: Yardstick, outputs: Sequence[Feed], source: Source, how: str, seed: int
) -> dict[str, AnyReading]:
    """The readings `quality` (and `agreement_top1` where the task has it) of one model's outputs on the yardstick."""
    if len(outputs) != len(yardstick.feeds):
        return {"quality": Missing(f"{len(outputs)} outputs for {len(yardstick.feeds)} held-out inputs")}
    answers = [
        answer(yardstick.task, out, feed, yardstick.output_names, yardstick.pooling)
        for out, feed in zip(outputs, yardstick.feeds, strict=True)
    ]
    return judge_answers(yardstick, answers, source, how, seed)


def judge_answers(
    yardstick: Yardstick, answers: Sequence[Array], source: Source, how: str, seed: int
) -> dict[str, AnyReading]:
    """As `judge_outputs`, for answers already taken."""
    import numpy as np

    for given in answers:
        if not np.isfinite(given).all():
            return {"quality": Missing("the outputs hold NaN or infinite values")}
    if yardstick.task == "causal-lm":
        return _language(yardstick, answers, source, how, seed)
    mine, dense = np.concatenate(list(answers)), np.concatenate(list(yardstick.reference))
    if mine.shape != dense.shape:
        return {"quality": Missing(f"outputs of shape {mine.shape}, the dense model's have {dense.shape}")}
    if yardstick.task == "classification":
        labels = dense if yardstick.labels is None else np.asarray(yardstick.labels)
        agreement = _mean_reading((mine == dense).astype(float), "agreement with dense", source, how, seed)
        quality = _mean_reading((mine == labels).astype(float), yardstick.unit, source, how, seed)
        return {"quality": quality, "agreement_top1": agreement}
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(dense, axis=1)
    # Two zero vectors are equal; one zero vector has nothing of the other's direction.
    both_zero = (np.linalg.norm(mine, axis=1) == 0) & (np.linalg.norm(dense, axis=1) == 0)
    cosine = np.where(both_zero, 1.0, (mine * dense).sum(1) / np.where(lengths == 0, 1.0, lengths))
    readings: dict[str, AnyReading] = {"quality": _mean_reading(cosine, yardstick.unit, source, how, seed)}
    if yardstick.task == "embedding":
        if len(mine) < 3:
            readings["agreement_top1"] = Missing(f"{len(mine)} texts are too few for neighbours")
        else:
            same = (neighbours(mine) == neighbours(dense)).astype(float)
            readings["agreement_top1"] = _mean_reading(same, "share of texts", source, how, seed)
    return readings


def neighbours(vectors: Array) -> Array:
    """For each row of unit vectors the index of the nearest other row by cosine."""
    import numpy as np

    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(similarity.argmax(1))


def _mean_reading(values: Array, unit: str, source: Source, how: str, seed: int) -> Reading:
    import numpy as np

    picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    means = values[picks].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    p10, p90 = np.percentile(values, [10, 90])
    return Reading(
        float(values.mean()), unit, source, len(values), float(p10), float(p90), float(low), float(high), how
    )


def _language(
    yardstick: Yardstick, answers: Sequence[Array], source: Source, how: str, seed: int
) -> dict[str, AnyReading]:
    import numpy as np

    # Per token of the dense model's splitting: a text split into more tokens is still the same text.
    counts = np.array([len(rows) for rows in yardstick.reference], dtype=float)
    alike = np.array([len(r) == len(d) for r, d in zip(answers, yardstick.reference, strict=True)])
    if yardstick.counted is not None:
        counts = counts * np.array(yardstick.counted)
        how = f"{how}; {sum(yardstick.counted)} of {len(counts)} texts: those that both tokenizers see whole"
    elif not alike.all():
        return {"quality": Missing("the outputs cover other positions than the dense model's")}
    if counts.sum() == 0:
        return {"quality": Missing("no text of two tokens or more to take perplexity on")}
    sums = np.array([-rows[:, 0].sum() for rows in answers]) * (counts > 0)
    compared = counts * alike
    hits = np.array([_same(yardstick, r, d) for r, d in zip(answers, yardstick.reference, strict=True)])
    hits *= compared > 0
    picks = np.random.default_rng(seed).integers(0, len(counts), (RESAMPLES, len(counts)))
    weight = np.maximum(counts[picks].sum(1), 1.0)
    total = int(counts.sum())
    losses = np.exp(np.minimum(sums[picks].sum(1) / weight, 700.0))
    agreed = hits[picks].sum(1) / np.maximum(compared[picks].sum(1), 1.0)
    quality = Reading(
        float(np.exp(min(sums.sum() / counts.sum(), 700.0))),
        "perplexity",
        source,
        total,
        low=float(np.percentile(losses, 2.5)),
        high=float(np.percentile(losses, 97.5)),
        how=how,
    )
    if compared.sum() == 0:
        return {"quality": quality, "agreement_top1": Missing("no text is split alike by both tokenizers")}
    agreement = replace(
        quality,
        n=int(compared.sum()),
        value=float(hits.sum() / compared.sum()),
        unit="share of tokens",
        low=float(np.percentile(agreed, 2.5)),
        high=float(np.percentile(agreed, 97.5)),
    )
    return {"quality": quality, "agreement_top1": agreement}


def _same(yardstick: Yardstick, mine: Array, dense: Array) -> float:
    """At how many places of one text both predict the same token; 0 where the places are not the same."""
    if len(mine) != len(dense):
        return 0.0
    predicted = mine[:, 1] if yardstick.numbers is None else yardstick.numbers[mine[:, 1].astype(int)]
    return float((predicted == dense[:, 1]).sum())


def label_numbers(labels: Sequence[str | None], names: Sequence[str]) -> tuple[int, ...] | None:
    """Class numbers of the labels (by class name or by number); None when no label was given. Raises DataError."""
    if all(label is None for label in labels):
        return None
    numbers: list[int] = []
    for label in labels:
        if label is None:
            raise DataError("data: some texts have a label and some have none")
        if label in names:
            numbers.append(list(names).index(label))
        elif label.isdigit() and int(label) < len(names):
            numbers.append(int(label))
        else:
            raise DataError(f"data: unknown label {label!r}. Allowed: {', '.join(names)} or 0..{len(names) - 1}")
    return tuple(numbers)


def differs(reduced: Mapping[str, AnyReading], dense: Mapping[str, AnyReading]) -> bool | None:
    """Whether the two quality intervals are apart; None when one has no interval."""
    a, b = reduced.get("quality"), dense.get("quality")
    if not isinstance(a, Reading) or not isinstance(b, Reading):
        return None
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    return a.high < b.low or b.high < a.low
