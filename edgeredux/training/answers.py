"""What a model says of a batch: its outputs and, where a loss asks, its hidden states and queries, keys, values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from edgeredux.model import Model
from edgeredux.training.attention import Projections, projections


@dataclass(frozen=True)
class Needs:
    """What to take from a forward pass besides the outputs. `attention` holds layer numbers, 0 the first."""

    hidden: bool = False
    attention: frozenset[int] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.hidden or other.hidden, self.attention | other.attention)


OUTPUTS = Needs()


@dataclass(frozen=True)
class Answers:
    """float32 tensors: outputs by name; hidden states [batch, tokens, width], the embeddings' first, then one a layer;
    per asked layer "query", "key" and "value" [batch, tokens, heads * head size], grouped keys and values repeated."""

    outputs: Mapping[str, torch.Tensor]
    hidden: Sequence[torch.Tensor] = ()
    attention: Mapping[int, Mapping[str, torch.Tensor]] = field(default_factory=dict)


def answers(model: Model, feed: Mapping[str, torch.Tensor], needs: Needs) -> Answers:
    """One forward pass, with gradients if enabled. `feed` may hold more than the model's inputs."""
    seen: dict[int, dict[str, torch.Tensor]] = {number: {} for number in needs.attention}
    with ExitStack() as stack:
        if needs.attention:
            found = projections(model)
            for number in needs.attention:
                for handle in _watch(model.module, found[number], seen[number]):
                    stack.callback(handle.remove)
        if needs.hidden:
            inputs = {name: feed[name] for name in model.input_names}
            out = model.module(**inputs, return_dict=True, output_hidden_states=True)
            outputs, hidden = {name: out[name] for name in model.output_names}, tuple(out.hidden_states)
        else:
            outputs, hidden = model.forward(feed), ()
    if needs.attention:
        seen = {number: found[number].repeated(parts) for number, parts in seen.items()}
    return Answers(
        {name: _float(value) for name, value in outputs.items()},
        tuple(value.float() for value in hidden),
        {number: {name: value.float() for name, value in parts.items()} for number, parts in seen.items()},
    )


def _float(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def _watch(module: torch.nn.Module, place: Projections, into: dict[str, torch.Tensor]) -> list[Any]:
    def hook(names: tuple[str, ...]) -> Any:
        def take(_: torch.nn.Module, given: Any, made: torch.Tensor) -> None:
            into.update(zip(names, made.chunk(len(names), -1), strict=True))

        return take

    return [module.get_submodule(path).register_forward_hook(hook(names)) for path, names in place.modules.items()]
