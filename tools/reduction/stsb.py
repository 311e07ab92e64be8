"""Quality on STS-B English dev: Spearman of cosine similarity against scores, and cosine to the dense embeddings."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from edgeredux.model import Model
from edgeredux.quality import pool
from edgeredux.seams import Feed

MAX_LENGTH = 64
DENSE_DEV = 0.8672  # all-MiniLM-L6-v2, as published with the reference table
_BATCH = 32


@dataclass(frozen=True)
class Quality:
    """One model on the dev pairs. Noise is the bootstrap's standard deviation of the difference to the dense model."""

    spearman: float
    cosine: float  # mean over all sentences of the pairs, to the dense model's embedding of the same sentence
    spearman_noise: float
    cosine_noise: float

    def to_json(self) -> dict[str, float]:
        """All four numbers by name."""
        return {name: round(value, 6) for name, value in vars(self).items()}


def read(path: Path) -> list[tuple[str, str, float]]:
    """Pairs with their score, in the file's order."""
    with path.open(encoding="utf-8", newline="") as handle:
        return [(row[0], row[1], float(row[2])) for row in csv.reader(handle)]


def calibration(data: Path, count: int = 512, first: int = 0) -> list[str]:
    """First column of every second row of the train split from row `first` on, the first `count`."""
    return [pair[0] for pair in read(data / "data-stsb" / "stsb-en-train.csv")[first::2]][:count]


def batches(model: Model, sentences: Sequence[str], size: int = _BATCH) -> list[Feed]:
    """The sentences in batches of their own order, cut to the model's max_length, padded to each batch's longest."""
    return [model.encode(sentences[place : place + size]) for place in range(0, len(sentences), size)]


def embeddings(model: Model, sentences: Sequence[str]) -> np.ndarray[Any, Any]:
    """Unit-length embeddings [sentences, width]; computed in order of length, given back in the order asked."""
    unique = sorted(dict.fromkeys(sentences), key=lambda text: (len(text), text))
    made = []
    for feed in batches(model, unique):
        hidden = model.run(feed)[model.output_names[0]]
        made.append(pool(hidden, feed["attention_mask"], model.pooling))
    rows = np.concatenate(made).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    place = {text: index for index, text in enumerate(unique)}
    return rows[[place[text] for text in sentences]]


class Judge:
    """Scores models on the dev split against one dense model, whose embeddings are taken once."""

    def __init__(self, dense: Model, data: Path, *, resamples: int = 1000) -> None:
        """Raises ValueError when the dense model does not reach its own published figure: the set-up would be wrong."""
        pairs = read(data / "data-stsb" / "stsb-en-dev.csv")
        self._left, self._right = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self._scores = np.array([pair[2] for pair in pairs])
        rng = np.random.default_rng(0)
        self._draws = [rng.integers(0, len(pairs), len(pairs)) for _ in range(resamples)]
        self._dense = self._embed(dense)
        similarity = _similarity(self._dense)
        self._dense_resampled = self._resampled(similarity)
        self.dense_spearman = self._spearman(similarity)
        if abs(self.dense_spearman - DENSE_DEV) > 5e-4:
            raise ValueError(f"the dense model's dev Spearman is {self.dense_spearman:.4f}, not {DENSE_DEV}")

    def score(self, model: Model) -> Quality:
        """Quality of a model with the dense one's tokenizer."""
        made = self._embed(model)
        if not np.isfinite(made).all():
            raise ValueError("the model's embeddings are not finite")
        similarity = _similarity(made)
        cosines = (made * self._dense).sum(1)
        both = (cosines[: len(self._left)] + cosines[len(self._left) :]) / 2
        drops = self._resampled(similarity) - self._dense_resampled
        return Quality(
            self._spearman(similarity),
            float(cosines.mean()),
            float(np.std(drops)),
            float(np.std([both[d].mean() for d in self._draws])),
        )

    def _embed(self, model: Model) -> np.ndarray[Any, Any]:
        return embeddings(model, [*self._left, *self._right])

    def _resampled(self, similarity: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array([rank_correlation(similarity[draw], self._scores[draw]) for draw in self._draws])

    def _spearman(self, similarity: np.ndarray[Any, Any]) -> float:
        return float(spearmanr(similarity, self._scores).statistic)


def _similarity(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    half = len(rows) // 2
    product: np.ndarray[Any, Any] = (rows[:half] * rows[half:]).sum(1)
    return product


def rank_correlation(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Pearson correlation of average ranks: what spearmanr gives, without its checks, for the bootstrap."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
