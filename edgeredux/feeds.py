"""Data as batches of inputs: for calibration, training, parity, latency and quality, at the shapes each needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeredux import caching
from edgeredux.arrays import ArrayData, read_npz, split
from edgeredux.data import Part, TextData, read_texts
from edgeredux.errors import DataError
from edgeredux.example_inputs import more_like
from edgeredux.model import Interface
from edgeredux.quality import label_numbers
from edgeredux.seams import Feed

if TYPE_CHECKING:
    from edgeredux.recipe import DataSection

_CONTINUED = ((2, 5, 3), (1, 9, 1))  # texts, tokens before, tokens: parity of a decoder that goes on
_SYNTHETIC = 512  # samples made where nobody gave any


@dataclass(frozen=True)
class Feeder:
    """Makes feeds for one model from one data set."""

    interface: Interface
    data: TextData | ArrayData
    section: DataSection

    def of(self, interface: Interface) -> Feeder:
        """The same samples for another model, e.g. one whose tokenizer a step rewrote."""
        same = interface.tokenizer is self.interface.tokenizer and interface.cache == self.interface.cache
        return self if same else replace(self, interface=interface)

    def batches(self, part: Part) -> list[Feed]:
        """The part in batches of the recipe's size, padded to the longest of each; the last may be smaller."""
        size = self.section.batch
        if isinstance(self.data, TextData):
            texts = self._texts(part)
            return [self.interface.encode(texts[i : i + size]) for i in range(0, len(texts), size)]
        feeds = self._arrays(part)
        return [stack(feeds[i : i + size]) for i in range(0, len(feeds), size)]

    def training(self) -> list[Feed]:
        """The training part in batches; those of a classifier whose data has labels hold them, int64 [batch]."""
        import numpy as np

        feeds = self.batches("training")
        if isinstance(self.data, TextData) and self.interface.task == "classification":
            examples = self.data.take("training", self.section.training)
            numbers = label_numbers([example.label for example in examples], self.interface.labels)
            size = self.section.batch
            for place, feed in enumerate(feeds if numbers is not None else ()):
                feed["labels"] = np.array(numbers[place * size : (place + 1) * size], np.int64)  # type: ignore[index]
        return feeds

    def singles(self, part: Part, shapes: Mapping[str, int], limit: int | None = None) -> list[Feed]:
        """The part one sample a feed, unpadded, or at the fixed shapes (batch of `shapes` samples, padded)."""
        batch = shapes.get("batch", 1)
        if isinstance(self.data, TextData):
            texts = self._texts(part)[:limit]
            groups = [texts[i : i + batch] for i in range(0, len(texts) - batch + 1, batch)]
            return [self.interface.encode(group, pad_to=shapes.get("sequence")) for group in groups]
        feeds = self._arrays(part)[:limit]
        return [stack(feeds[i : i + batch]) for i in range(0, len(feeds) - batch + 1, batch)]

    def labels(self, limit: int | None = None) -> tuple[int, ...] | None:
        """Class numbers of the evaluation part; None where the data has no labels or the model no classes."""
        if not isinstance(self.data, TextData) or self.interface.task != "classification":
            return None
        examples = self.data.take("evaluation", self.section.evaluation)[:limit]
        return label_numbers([example.label for example in examples], self.interface.labels)

    def samples(self, shapes: Mapping[str, int]) -> list[Feed]:
        """Real inputs of several shapes for parity: batch 1, 2 and 3; one token, odd, and the longest sequences."""
        if not isinstance(self.data, TextData):
            feeds = self._arrays("calibration")
            if "batch" in shapes or not self.has_axis("batch"):
                return feeds[:4]
            return [stack(feeds[:2]), feeds[2 % len(feeds)], stack(feeds[:3])]
        texts = self._texts("calibration")
        longest = " ".join(texts)[:20_000]
        if "batch" in shapes or "sequence" in shapes:
            return self.singles("calibration", shapes, limit=4 * shapes.get("batch", 1))
        ordered = sorted(texts, key=len)
        return [
            *(self._continued(texts[:rows], past, tokens) for rows, past, tokens in _CONTINUED if self.interface.cache),
            self.interface.encode([ordered[len(ordered) // 2], ordered[-1]]),
            self.interface.encode([ordered[0]]),
            self.interface.encode(texts[1:4]),
            self.interface.encode([longest]),
            _one_token(self.interface.encode([ordered[0]])),
        ]

    def _continued(self, texts: list[str], past: int, tokens: int) -> Feed:
        """A feed of a decoder that has seen `past` tokens before these `tokens`."""
        import numpy as np

        feed = self.interface.encode(texts)
        mask = np.ones((len(texts), past + tokens), np.int64)
        positions = caching.positions(mask, tokens)
        past_feed = caching.made_up(self.interface.cache, len(texts), past, seed=past)
        ids = np.resize(feed["input_ids"], (len(texts), tokens))  # any tokens do
        return {**feed, "input_ids": ids, "attention_mask": mask, "position_ids": positions, **past_feed}

    def latency(self, shapes: Mapping[str, int], batch: int, sequence: int, count: int = 8) -> list[Feed]:
        """Feeds to time: real text of exactly `sequence` tokens (texts joined until long enough), or fixed shapes."""
        size = shapes.get("batch", batch)
        if not isinstance(self.data, TextData):
            feeds = self._arrays("evaluation")
            return [stack([feeds[(i * size + j) % len(feeds)] for j in range(size)]) for i in range(count)]
        length = min(shapes.get("sequence", sequence), self.interface.max_length)
        texts = self._texts("evaluation")
        made = []
        for index in range(count):
            rows = []
            for row in range(size):
                start = (index * size + row) * 7 % len(texts)
                rotated = [*texts[start:], *texts[:start]]
                rows.append(" ".join(rotated)[: length * 40])
            made.append(self.interface.encode(rows, pad_to=length))
        return made

    def has_axis(self, axis: str) -> bool:
        """Whether any input has this dynamic axis."""
        return any(axis in self.interface.axes[name] for name in self.interface.input_names)

    def _texts(self, part: Part) -> list[str]:
        assert isinstance(self.data, TextData)
        return [example.text for example in self.data.take(part, getattr(self.section, part))]

    def _arrays(self, part: Part) -> list[Feed]:
        assert isinstance(self.data, ArrayData)
        return list(self.data.parts[part][: getattr(self.section, part)])


def make_feeder(interface: Interface, section: DataSection, seed: int) -> Feeder:
    """The feeder of a model and a recipe's data section. Raises DataError when the two do not fit."""
    if interface.tokenizer is not None:
        if section.source.endswith(".npz") or section.source == "synthetic":
            raise DataError(f"data {section.source}: model {interface.name} takes text, not arrays")
        data = read_texts(section.source, text=section.text, label=section.label)
        return Feeder(interface, data, section)
    if interface.examples is None:
        raise DataError(f"model {interface.name}: it has neither a tokenizer nor example inputs, so nothing can be fed")
    if section.source.endswith(".npz"):
        return Feeder(interface, read_npz(section.source, interface.examples), section)
    if section.source not in ("python-docs", "synthetic"):
        raise DataError(f"data {section.source}: model {interface.name} takes arrays: give a .npz file or 'synthetic'")
    return Feeder(interface, split("synthetic", _single_samples(interface, seed)), section)


def _single_samples(interface: Interface, seed: int) -> list[Feed]:
    assert interface.examples is not None
    dynamic = {name: "batch" in interface.axes[name][:1] for name in interface.examples}
    one = {name: value[:1] if dynamic[name] else value for name, value in interface.examples.items()}
    return more_like(one, _SYNTHETIC, seed)


def stack(feeds: Sequence[Feed]) -> Feed:
    """Several one-sample feeds as one batch."""
    import numpy as np

    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _one_token(feed: Feed) -> Feed:
    def cut(value: Any) -> Any:
        return value[:, :1] if value.ndim == 2 else value  # a decoder's empty past stays

    return {name: cut(value) for name, value in feed.items()}
