"""How near a model stays to the dense one on given batches: one loss that always tells models apart, and one quality.

    task             loss                                        quality, 1 = as dense
    embedding        1 - mean cosine of the embeddings           mean cosine to dense
    classification   mean KL(dense || model) of the classes      share of samples with the dense model's class
    causal-lm        mean KL(dense || model) of the next token   perplexity of dense / perplexity of the model
    generic          1 - mean cosine of the outputs              mean cosine to dense

Where the truth is known (batches of a classifier that hold "labels", the next tokens of a text) there is also the
task's own loss, the mean cross-entropy; with labels a classifier's quality is its accuracy.

This steers a choice while it is being made, on calibration or training data. The verdict is taken elsewhere
(quality.py), on the evaluation part, which nothing here may see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeredux.batching import by_length
from edgeredux.errors import DataError, ModelError
from edgeredux.model import Model
from edgeredux.quality import answer
from edgeredux.seams import Feed

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# Numbers kept of a language model's next-token distributions: 256 MiB in float32. Beyond it every k-th position counts.
_KEPT = 1 << 26
QUALITY_UNITS = {
    "embedding": "mean cosine to dense",
    "classification": "agreement with dense",
    "causal-lm": "perplexity of dense / its own",
    "generic": "mean cosine to dense",
}
LOSS_UNITS = {
    "embedding": "1 - mean cosine to dense",
    "classification": "KL divergence from dense, nats",
    "causal-lm": "KL divergence from dense, nats per token",
    "generic": "1 - mean cosine to dense",
}


@dataclass(frozen=True)
class Closeness:
    """`loss`: 0 = as dense, lower is nearer. `quality`: higher is nearer. `task_loss`: nats, where truth is known."""

    loss: float
    quality: float
    task_loss: float | None = None


class Gauge:
    """The dense model's outputs on some batches, and how near the outputs of others come to them.

    `feeds` are the batches as regrouped by length: a caller that runs a model itself goes through them in order.
    """

    def __init__(self, dense: Model, feeds: Sequence[Feed], samples: int | None = None) -> None:
        """On the first `samples` of `feeds` (all: None). Raises DataError without any, ModelError for NaN outputs."""
        self._model = dense
        self.feeds = _first(dense, feeds, samples)
        self.samples = sum(next(iter(feed.values())).shape[0] for feed in self.feeds)
        self.labelled = dense.task == "classification" and all("labels" in feed for feed in self.feeds)
        self._stride = 1
        outputs = [dense.run(feed) for feed in self.feeds]
        if dense.task == "causal-lm":
            numbers = sum(outs[dense.output_names[0]].size for outs in outputs)
            self._stride = -(-numbers // _KEPT)
        self._dense = [self._read(outs, feed) for outs, feed in zip(outputs, self.feeds, strict=True)]

    @property
    def quality_unit(self) -> str:
        """What `quality` is, in words."""
        return "accuracy" if self.labelled else QUALITY_UNITS[self._model.task]

    @property
    def dense(self) -> Closeness:
        """The dense model itself."""
        true = [mine[1] for mine in self._dense if len(mine) > 1]
        right = [_right(mine[0], feed) for mine, feed in zip(self._dense, self.feeds, strict=True) if self.labelled]
        return Closeness(0.0, _mean(right) if right else 1.0, -_mean(true) if true else None)

    @property
    def loss_unit(self) -> str:
        """What `loss` is, in words."""
        return LOSS_UNITS[self._model.task]

    def of(self, run: Callable[[int], Feed]) -> Closeness:
        """How near run(i), the outputs on batch i of `feeds`, come. Raises ModelError for NaN or infinite ones."""
        import numpy as np

        losses, qualities, true = [], [], []
        for index, (feed, dense) in enumerate(zip(self.feeds, self._dense, strict=True)):
            mine = self._read(run(index), feed)
            if len(mine) > 1:
                true.append(mine[1])
            if self._model.task in ("embedding", "generic"):
                losses.append(_distance(dense[0], mine[0]))
                qualities.append(1 - losses[-1])
                continue
            losses.append(_divergence(dense[0], mine[0]))
            if self.labelled:
                qualities.append(_right(mine[0], feed))
            elif self._model.task == "classification":
                qualities.append((mine[0].argmax(-1) == dense[0].argmax(-1)).astype(float))
            else:
                qualities.append(mine[1] - dense[1])  # log-likelihood of the true next tokens, against dense
        quality = _mean(qualities)
        if self._model.task == "causal-lm":
            quality = float(np.exp(np.clip(quality, -700, 700)))
        return Closeness(max(0.0, _mean(losses)), quality, -_mean(true) if true else None)

    def of_model(self, model: Model) -> Closeness:
        """As `of`, for a model that runs in the usual way."""
        return self.of(lambda index: model.run(self.feeds[index]))

    def _read(self, outputs: Feed, feed: Feed) -> tuple[Array, ...]:
        """Embeddings or outputs [samples, width], or log-probabilities [samples, classes] and those of the truth."""
        import numpy as np

        model = self._model
        first = outputs[model.output_names[0]]
        if not np.isfinite(first).all():
            raise ModelError(f"model {model.name}: its outputs are NaN or infinite on the calibration data")
        if model.task == "causal-lm":
            mask = feed.get("attention_mask", np.ones_like(feed["input_ids"])).astype(bool)
            real = mask[:, 1:] & mask[:, :-1]
            logs = _log_softmax(first[:, :-1][real])
            true = np.take_along_axis(logs, feed["input_ids"][:, 1:][real][:, None], -1)[:, 0]
            return logs[:: self._stride].astype(np.float32), true.astype(np.float64)
        if model.task == "classification":
            logs = _log_softmax(first.reshape(-1, first.shape[-1]))
            if not self.labelled:
                return (logs,)
            labels = feed["labels"].reshape(-1)
            if labels.dtype.kind not in "iu" or not ((labels >= 0) & (labels < logs.shape[-1])).all():
                raise DataError(f"data: labels must be whole numbers of 0..{logs.shape[-1] - 1}")
            return logs, np.take_along_axis(logs, labels[:, None], -1)[:, 0]
        return (answer(model.task, outputs, feed, model.output_names, model.pooling),)


def _first(model: Model, feeds: Sequence[Feed], samples: int | None) -> list[Feed]:
    if not feeds:
        raise DataError(f"model {model.name}: there is no data to compare it with the dense model on")
    if samples is None or "batch" not in model.axes[model.input_names[0]][:1]:
        return by_length(model, list(feeds)[:samples])
    kept: list[Feed] = []
    for feed in feeds:
        size = next(iter(feed.values())).shape[0]
        if samples <= 0:
            break
        kept.append({name: value[:samples] for name, value in feed.items()} if size > samples else feed)
        samples -= size
    return by_length(model, kept)


def _right(logs: Array, feed: Feed) -> Array:
    """1 where the most likely class is the label, else 0."""
    import numpy as np

    return np.asarray((logs.argmax(-1) == feed["labels"].reshape(-1)).astype(float))


def _mean(rows: Iterable[Array]) -> float:
    import numpy as np

    return float(np.concatenate(list(rows)).mean())


def _log_softmax(logits: Array) -> Array:
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _divergence(dense: Array, mine: Array) -> Array:
    """KL(p_dense || p_mine) by row, from log-probabilities."""
    import numpy as np

    return np.asarray((np.exp(dense) * (dense - mine)).sum(-1, dtype=np.float64))


def _distance(dense: Array, mine: Array) -> Array:
    """1 - cosine by row, as half the squared distance of unit vectors: exact near 0, where 1 - cosine is rounding."""
    import numpy as np

    lengths = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in (dense, mine)]
    a, b = (rows / np.where(n == 0, 1.0, n) for rows, n in zip((dense, mine), lengths, strict=True))
    # Two zero vectors are equal; one zero vector has nothing of the other's direction.
    one_zero = ((lengths[0] == 0) != (lengths[1] == 0))[:, 0]
    return np.where(one_zero, 1.0, 0.5 * np.square(a - b).sum(1))
