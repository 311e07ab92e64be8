"""A PyTorch model with all that is needed to feed, run, save and export it. Frozen: a step returns a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from edgeredux import caching
from edgeredux.caching import Cache
from edgeredux.errors import DataError
from edgeredux.seams import Feed

if TYPE_CHECKING:
    import numpy as np
    import torch

Task: TypeAlias = Literal["embedding", "classification", "causal-lm", "generic"]
TASKS: tuple[str, ...] = get_args(Task)


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What goes into a model and what comes out of it, whatever executes it.

    `input_names` are forward's argument names in order; `axes` names the dynamic axes of each input and output, e.g.
    {"input_ids": ("batch", "sequence"), "last_hidden_state": ("batch", "sequence", None)} where None is a fixed axis.
    Names and axes are Optimum's. `pooling` ("mean" or "cls") turns last_hidden_state into sentence embeddings.
    """

    name: str
    task: Task
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    axes: Mapping[str, tuple[str | None, ...]]
    source: str  # as the user wrote it
    sha256: str  # of the weights as read
    tokenizer: Any | None = None
    max_length: int = 128  # tokens a text is cut to
    pooling: Literal["mean", "cls"] = "mean"
    labels: tuple[str, ...] = ()  # class names of a classifier
    examples: Mapping[str, np.ndarray[Any, Any]] | None = None  # example inputs of a model that takes no text
    cache: Cache = ()  # of a decoder whose past comes in and goes out (edgeredux/caching.py)

    def encode(self, texts: Sequence[str], *, pad_to: int | None = None) -> Feed:
        """One int64 batch for `texts`, padded to the longest or to `pad_to` tokens, cut to max_length."""
        if self.tokenizer is None:
            raise DataError(f"model {self.name}: it has no tokenizer, so text cannot be its input")
        batch = self.tokenizer(
            list(texts),
            padding="max_length" if pad_to else True,
            truncation=True,
            max_length=pad_to or self.max_length,
            return_tensors="np",
        )
        feed: Feed = {}
        for name in self.input_names:
            if name in batch:
                feed[name] = batch[name].astype("int64")
            elif name == "token_type_ids":
                feed[name] = batch["input_ids"].astype("int64") * 0
            elif name == "position_ids" and self.cache:
                feed[name] = caching.positions(batch["attention_mask"], batch["input_ids"].shape[1])
            elif name.startswith("past_key_values.") and self.cache:
                feed |= caching.empty(self.cache, len(texts))
            else:
                raise DataError(f"model {self.name}: the tokenizer gives no {name!r}")
        return feed


@dataclass(frozen=True, kw_only=True)
class Model(Interface):
    """A PyTorch module in eval mode with its interface."""

    module: torch.nn.Module
    is_transformers: bool = False
    history: tuple[str, ...] = ()

    def after(self, module: torch.nn.Module, line: str) -> Model:
        """The model that a step made of this one."""
        return replace(self, module=module, history=(*self.history, line))

    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def forward(self, feed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs by name, with gradients if enabled. Accepts exactly `input_names` (missing ones raise KeyError)."""
        if self.is_transformers:
            out = self.module(**{name: feed[name] for name in self.input_names}, return_dict=True)
            return {name: out[name] for name in self.output_names}
        out = self.module(*(feed[name] for name in self.input_names))
        if isinstance(out, Mapping):
            return {name: out[name] for name in self.output_names}
        outs = out if isinstance(out, (tuple, list)) else (out,)
        return dict(zip(self.output_names, outs, strict=True))

    def run(self, feed: Feed) -> Feed:
        """Outputs as NumPy arrays, in inference mode."""
        import torch

        with torch.inference_mode():
            outputs = self.forward({name: torch.from_numpy(feed[name]) for name in self.input_names})
        return {
            name: value.float().numpy() if value.is_floating_point() else value.numpy()
            for name, value in outputs.items()
        }
