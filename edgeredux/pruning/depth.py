"""The step `depth`: whole layers of a transformer go, the least influential first.

Influence of a layer: 1 - E cos(x_in, x_out) over the real positions of the calibration data, its input and output on
the residual stream (ShortGPT, Men et al. 2024, eq. 1), taken in one pass. "output" asks the model instead: layer after
layer, the one goes without which the model's own outputs stay nearest to the dense ones (mean squared error), which
costs a pass for every layer that is left.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass as plain
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch.nn import functional as F

from edgeredux.artifact import Change
from edgeredux.errors import DataError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.seams import Feed, ReduceContext
from edgeredux.sparsity.counts import count_of

# Config names of a layer count; those of one side of an encoder-decoder first.
_COUNTS = ("encoder_layers", "decoder_layers", "num_decoder_layers", "num_hidden_layers", "num_layers")
# Config lists of layer numbers rather than one entry a layer.
_NUMBERS = ("mlp_only_layers", "full_attn_idxs")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Depth:
    """Remove floor(share * layers) layers of every stack, or just those numbered in `layers` (from 0, one stack).

    At least one layer stays, and so do first layers that are built otherwise than the rest (T5 keeps its position bias
    in the first one). The config says the new count, so that stock transformers loads the result.
    """

    share: Annotated[float, Field(ge=0, lt=1)] | None = None
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    importance: Literal["influence", "output"] = "influence"

    def check(self, model: Model) -> None:
        """Raise RecipeError or ModelError when there is no stack of equal layers or nothing would go."""
        found = stacks(model)
        if not found:
            raise ModelError(f"depth: model {model.name} has no stack of layers that its config counts")
        if (self.share is None) == (not self.layers):
            raise RecipeError("depth: give either share or layers")
        if self.layers:
            if len(found) > 1:
                names = ", ".join(stack.name for stack in found)
                raise RecipeError(f"depth: layers is for one stack, the model has {len(found)} ({names}); give share")
            count = len(found[0].items)
            wrong = [number for number in self.layers if number >= count]
            first = [number for number in self.layers if number < found[0].fixed]
            if first:
                names = f"layer {first[0]} of {found[0].name} is built otherwise than the last"
                raise RecipeError(f"depth: layers {list(self.layers)}: {names} and must stay first")
            if wrong or len(set(self.layers)) >= count or len(set(self.layers)) != len(self.layers):
                raise RecipeError(f"depth: layers {list(self.layers)}: allowed are different ones of 0..{count - 1}")
        elif not any(self._count(stack) for stack in found):
            counts = ", ".join(str(len(stack.items)) for stack in found)
            raise RecipeError(f"depth: share {self.share} of {counts} layers is none: nothing would be removed")

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The shallower model; Change details hold the removed layers and every layer's influence."""
        self.check(model)
        if not context.calibration and not self.layers:
            raise DataError("depth: no calibration data")
        torch.set_num_threads(context.threads)
        student = model.after(copy.deepcopy(model.module).eval(), repr(self))
        details: dict[str, Any] = {"removed": {}, "influence": {}}
        before = student.parameters()
        for stack in stacks(student):
            if self.layers:
                gone = sorted(self.layers)
            elif self.importance == "output":
                gone = self._by_output(model, student, stack, context)
            else:
                scores = influence(student, stack, context.calibration)
                details["influence"][stack.name] = scores
                able = range(stack.fixed, len(scores))
                gone = sorted(sorted(able, key=scores.__getitem__)[: self._count(stack)])
            remove(student.module, stack, gone)
            details["removed"][stack.name] = gone
        after = student.parameters()
        said = "; ".join(f"{name} {', '.join(map(str, gone))}" for name, gone in details["removed"].items() if gone)
        context.progress("depth", 1, 1)
        return student, Change("depth", True, f"layers removed: {said}; {before:,} to {after:,} parameters", details)

    def _count(self, stack: Stack) -> int:
        assert self.share is not None
        return min(count_of(self.share, len(stack.items)), len(stack.items) - max(1, stack.fixed))

    def _by_output(self, dense: Model, student: Model, stack: Stack, context: ReduceContext) -> list[int]:
        kept = list(range(len(stack.items)))
        wanted = [dense.run(feed) for feed in context.calibration]
        owner, _, key = stack.name.rpartition(".")
        for turn in range(self._count(stack)):
            losses = {}
            for place in kept[stack.fixed :]:
                context.progress(f"without layer {place}", turn, self._count(stack))
                rest = [stack.items[index] for index in kept if index != place]
                setattr(student.module.get_submodule(owner), key, torch.nn.ModuleList(rest))
                losses[place] = _distance(student, context.calibration, wanted)
            kept.remove(min(losses, key=losses.__getitem__))
        setattr(student.module.get_submodule(owner), key, torch.nn.ModuleList(stack.items))
        return sorted(set(range(len(stack.items))) - set(kept))


@plain(frozen=True)
class Stack:
    """A list of equal layers and the configs that count them."""

    name: str
    items: tuple[torch.nn.Module, ...]
    counts: tuple[tuple[Any, str], ...]  # config and attribute
    fixed: int = 0  # so many first layers have other parameters than the last one has, and must stay first


def stacks(model: Model) -> list[Stack]:
    """The outermost lists of layers of one class whose number a config of the model says."""
    found: list[Stack] = []
    for name, part in model.module.named_modules():
        if not isinstance(part, torch.nn.ModuleList) or any(name.startswith(f"{other.name}.") for other in found):
            continue
        if len(part) == 0 or len({type(item) for item in part}) != 1:
            continue
        counts = tuple(_counted(model.module, name, len(part)))
        if counts:
            found.append(Stack(name, tuple(part), counts, _fixed(tuple(part), counts)))
    return found


def _fixed(items: Sequence[torch.nn.Module], counts: Sequence[tuple[Any, str]]) -> int:
    if any(getattr(config, name, None) for config, _ in counts for name in _NUMBERS):
        return 0  # the config numbers the layers that are otherwise
    names = [{name for name, _ in item.named_parameters()} for item in items]
    return next(place for place, own in enumerate(names) if own == names[-1])


def _counted(module: torch.nn.Module, name: str, size: int) -> list[tuple[Any, str]]:
    owners, place = [module], module
    for step in name.split(".")[:-1]:
        place = place.get_submodule(step)
        owners.append(place)
    configs = {id(part.config): part.config for part in owners if hasattr(part, "config")}
    side = next((side for side in ("encoder", "decoder") if side in name.split(".")), None)
    found = []
    for config in configs.values():
        both = getattr(config, "is_encoder_decoder", False)
        for attribute in _COUNTS:
            other = side is not None and both and "coder" in attribute and side not in attribute
            t5 = side == "decoder" and attribute == "num_layers" and hasattr(config, "num_decoder_layers") and both
            if getattr(config, attribute, None) == size and not other and not t5:
                found.append((config, attribute))
    return found


def influence(model: Model, stack: Stack, feeds: Sequence[Feed]) -> list[float]:
    """1 - mean cosine between input and output of each layer, padding left out."""
    sums, counts = [0.0] * len(stack.items), [0] * len(stack.items)
    real: list[torch.Tensor | None] = [None]

    def hook(place: int) -> Any:
        def see(_: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
            before = given[0] if given else named["hidden_states"]
            after = made[0] if isinstance(made, tuple) else made
            cosine = F.cosine_similarity(before.float(), after.float(), dim=-1).reshape(-1)
            if real[0] is not None and len(real[0]) == len(cosine):
                cosine = cosine[real[0]]
            if not bool(torch.isfinite(cosine).all()):
                raise ModelError(f"depth: the activations of layer {place} are NaN or infinite on the calibration data")
            sums[place] += float(cosine.double().sum())
            counts[place] += len(cosine)

        return see

    handles = [item.register_forward_hook(hook(place), with_kwargs=True) for place, item in enumerate(stack.items)]
    try:
        with torch.no_grad():
            for feed in feeds:
                tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
                real[0] = tensors["attention_mask"].bool().reshape(-1) if "attention_mask" in tensors else None
                model.forward(tensors)
    finally:
        for handle in handles:
            handle.remove()
    if not all(counts):
        raise DataError("depth: the calibration data holds nothing but padding")
    return [1 - total / count for total, count in zip(sums, counts, strict=True)]


def _distance(model: Model, feeds: Sequence[Feed], wanted: Sequence[Feed]) -> float:
    total = 0.0
    for feed, outputs in zip(feeds, wanted, strict=True):
        made = model.run(feed)
        for name, value in outputs.items():
            error = torch.from_numpy(made[name] - value).double().square()
            mask = feed.get("attention_mask")
            if mask is not None and error.shape[:2] == mask.shape:
                error = error[torch.from_numpy(mask).bool()]
            total += float(error.sum())
    return total


def remove(module: torch.nn.Module, stack: Stack, gone: Sequence[int]) -> None:
    """Take the numbered layers out, in place: the list, its layers' own numbers (for the cache), the configs."""
    kept = [place for place in range(len(stack.items)) if place not in set(gone)]
    owner, _, key = stack.name.rpartition(".")
    home = module.get_submodule(owner)
    setattr(home, key, torch.nn.ModuleList(stack.items[place] for place in kept))
    for name in (*_COUNTS, "n_layers"):
        if getattr(home, name, None) == len(stack.items):
            setattr(home, name, len(kept))
    for number, place in enumerate(kept):
        for part in stack.items[place].modules():
            if isinstance(getattr(part, "layer_idx", None), int):
                part.layer_idx = number  # type: ignore[assignment]
    for config in {id(config): config for config, _ in stack.counts}.values():
        for name, value in list(vars(config).items()):
            if not isinstance(value, list):
                continue
            if name in _NUMBERS:
                setattr(config, name, [kept.index(number) for number in value if number in kept])
            elif len(value) == len(stack.items):  # one entry a layer: layer_types, no_rope_layers
                setattr(config, name, [value[place] for place in kept])
    for config, attribute in stack.counts:
        setattr(config, attribute, len(kept))
