"""The dense model's answers to the held-out inputs, and how far the dense model repeats itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux import caching
from edgeredux.execute import execute
from edgeredux.feeds import Feeder
from edgeredux.model import Interface, Model
from edgeredux.quality import Yardstick, answer, judge_answers
from edgeredux.readings import AnyReading
from edgeredux.retokenised import comparable, dense_numbers
from edgeredux.seams import Feed

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Reference:
    """The reference answers for every held-out sample, in the feeder's order, one array row group per sample."""

    answers: tuple[Array, ...]
    repeatability: Mapping[str, AnyReading]


def of_model(model: Model, feeder: Feeder, seed: int) -> Reference:
    """Answers of the PyTorch model to each held-out sample alone, and again in padded batches (its own noise)."""
    singles = feeder.singles("evaluation", {})
    answers = tuple(take(model, model.run(feed), feed) for feed in singles)
    again: list[Array] = []
    for batch in feeder.batches("evaluation"):
        again += rows(model, model.run(batch), batch)
    yardstick = Yardstick(model.task, tuple(singles), answers, feeder.labels(), model.pooling, model.output_names)
    how = "the dense PyTorch model against itself: one sample at a time, and in padded batches"
    return Reference(answers, judge_answers(yardstick, again, "measured", how, seed))


def of_graph(path: Path, interface: Interface, feeder: Feeder, seed: int, log: Path) -> Reference:
    """Answers of a finished graph under its reference runtime on this machine, taken twice (its own noise)."""
    feeds = feeder.singles("evaluation", {})
    first = execute(path, feeds, log=log)
    answers = tuple(take(interface, out, feed) for out, feed in zip(first, feeds, strict=True))
    again = [take(interface, out, feed) for out, feed in zip(execute(path, feeds, log=log), feeds, strict=True)]
    yardstick = Yardstick(
        interface.task, tuple(feeds), answers, feeder.labels(), interface.pooling, interface.output_names
    )
    how = "the graph as given against itself, executed twice on this machine"
    return Reference(answers, judge_answers(yardstick, again, "measured", how, seed))


def take(interface: Interface, outputs: Feed, feed: Feed) -> Array:
    """What the task reads off one feed's outputs."""
    return answer(interface.task, outputs, feed, interface.output_names, interface.pooling)


def rows(interface: Interface, outputs: Feed, feed: Feed) -> list[Array]:
    """As `take`, for each sample of a batch on its own."""
    if interface.task == "generic" and not all("batch" in interface.axes[name][:1] for name in interface.output_names):
        return [take(interface, outputs, feed)]
    size = next(iter(feed.values())).shape[0]
    found = []
    for index in range(size):
        one = {name: value[index : index + 1] for name, value in feed.items()}
        out = {name: value[index : index + 1] for name, value in outputs.items()}
        found.append(take(interface, out, one))
    return found


def pair(
    dense: Feeder, reduced: Feeder, answers: Sequence[Array], shapes: Mapping[str, int], limit: int | None
) -> dict[str, Yardstick]:
    """The yardsticks "dense" and "reduced" for feeds at `shapes`, for the first `limit` held-out samples.

    They differ only where a step rewrote the tokenizer: then perplexity counts the texts that both models see whole.
    """
    import numpy as np

    interface = dense.interface
    feeds = {"dense": dense.singles("evaluation", shapes, limit)}
    feeds["reduced"] = feeds["dense"] if reduced is dense else reduced.singles("evaluation", shapes, limit)
    rewritten = reduced.interface.tokenizer is not interface.tokenizer
    count, batch = len(feeds["dense"]), shapes.get("batch", 1)
    grouped = [np.concatenate(list(answers[i * batch : (i + 1) * batch])) for i in range(count)]
    labels = dense.labels(limit)
    labels = None if labels is None else labels[: count * batch]
    counted, numbers = None, None
    if rewritten and interface.task == "causal-lm":
        numbers = dense_numbers(interface.tokenizer, reduced.interface.tokenizer)
        longest = shapes.get("sequence", interface.max_length)
        both = zip(feeds["dense"], feeds["reduced"], strict=True)
        counted = tuple(comparable(one, other, numbers, longest) for one, other in both)

    def made(label: str, numbers: Array | None) -> Yardstick:
        names = tuple(name for name in interface.output_names if not caching.is_present(name))
        given = tuple(feeds[label])
        return Yardstick(
            interface.task, given, tuple(grouped), labels, interface.pooling, names, counted=counted, numbers=numbers
        )

    return {"dense": made("dense", None), "reduced": made("reduced", numbers)}


def save(reference: Reference, path: Path) -> None:
    """Write the answers as .npz (repeatability goes into the report's JSON)."""
    import numpy as np

    np.savez(path, **{f"{index:06d}": value for index, value in enumerate(reference.answers)})  # type: ignore[arg-type]


def load_answers(path: Path) -> tuple[Array, ...]:
    """What `save` wrote."""
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        return tuple(archive[name] for name in sorted(archive.files))
