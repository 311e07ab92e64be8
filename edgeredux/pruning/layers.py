"""Prunable layers as matrices [outputs, inputs]: Linear, Conv2d and Conv1d, and the Conv1D that GPT-2 is made of.

A convolution's inputs are its kernel's positions, channel by channel, as torch.nn.functional.unfold orders them; of a
grouped one each group of output rows has inputs of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from edgeredux.errors import ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.sparsity.patterns import Pattern

# Where Linears and their like take their inputs from; GPT-2 names its own kind of Linear Conv1D.
KINDS = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv1d, Conv1D)


@dataclass(frozen=True)
class Layer:
    """One prunable module of a model, by its name."""

    name: str
    module: torch.nn.Module

    @property
    def groups(self) -> int:
        """1, or the groups of a grouped convolution: as many blocks of output rows, each with its own inputs."""
        return int(getattr(self.module, "groups", 1))

    def matrix(self) -> torch.Tensor:
        """The weight as float32 [outputs, inputs of a group]; a copy, unless it is stored just so."""
        return self.as_matrix(self.module, self._weight().detach())

    @staticmethod
    def as_matrix(module: torch.nn.Module, weight: torch.Tensor) -> torch.Tensor:
        """A tensor of the shape of `module`'s weight (its gradient, say) as float32 [outputs, inputs of a group]."""
        return (weight.T if isinstance(module, Conv1D) else weight.flatten(1)).float()

    def store(self, matrix: torch.Tensor) -> None:
        """Write the matrix back in the stored type and shape. Exact zeros stay exact zeros in any floating type."""
        weight = self._weight()
        value = matrix.T if isinstance(self.module, Conv1D) else matrix.view(weight.shape)
        with torch.no_grad():
            weight.copy_(value)

    def positions(self, given: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """The layer's inputs as [groups, positions, inputs of a group]; padding (`real` False) is left out.

        `real` is the flattened attention mask; it counts only where it has one entry a position.
        """
        if isinstance(self.module, (torch.nn.Conv2d, torch.nn.Conv1d)):
            return self._patches(given.detach())
        flat = given.detach().reshape(-1, given.shape[-1])
        # Only per-token values line up with the mask; a pooled [batch, width] does not.
        padded = real is not None and len(real) == len(flat) and not bool(real.all())
        return (flat[real] if padded else flat)[None]

    def _patches(self, given: torch.Tensor) -> torch.Tensor:
        conv = self.module
        assert isinstance(conv, (torch.nn.Conv2d, torch.nn.Conv1d))
        size, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
        # Conv keeps both sides of its padding, last axis first, also for padding="same" and for other padding modes.
        sides = conv._reversed_padding_repeated_twice
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        padded = F.pad(given, sides, mode=mode)
        if isinstance(conv, torch.nn.Conv1d):
            padded, size, stride, dilation = padded.unsqueeze(2), (1, *size), (1, *stride), (1, *dilation)
        columns = F.unfold(padded, size, dilation=dilation, stride=stride)  # [batch, channels * kernel, places]
        batch, _, places = columns.shape
        return columns.view(batch, self.groups, -1, places).permute(1, 0, 3, 2).reshape(self.groups, batch * places, -1)

    def _weight(self) -> torch.Tensor:
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight


def layers(model: Model, exclude: Sequence[str] = (), where: str = "prune") -> list[Layer]:
    """The prunable layers of encoder and decoder blocks (of any part in a plain nn.Module), in the model's order.

    Blocks are the items of the outermost module lists: embeddings, poolers and heads of a transformers model stand
    outside. Layers whose name matches a pattern of `exclude` (shell style) are left out; one that is there under two
    names is taken once. Raises RecipeError for a pattern that matches nothing, ModelError when no layer is left.
    """
    parts = {name: part for name, part in model.module.named_modules() if isinstance(part, KINDS)}
    if model.is_transformers:
        parts = {name: part for name, part in parts.items() if block_of(model, name) is not None}
    for pattern in exclude:
        if not any(fnmatch(name, pattern) for name in parts):
            some = ", ".join(list(parts)[:3]) or "none"
            raise RecipeError(f"{where}: exclude {pattern!r} matches no layer. Layers: {some}, ... ({len(parts)})")
    kept = {name: part for name, part in parts.items() if not any(fnmatch(name, pattern) for pattern in exclude)}
    if not kept:
        raise ModelError(f"{where}: model {model.name} has no layer in a block that could be pruned")
    return [Layer(name, part) for name, part in kept.items()]


def check_fit(found: Sequence[Layer], pattern: Pattern, where: str) -> None:
    """Raise ModelError for a layer of which a row group does not take the pattern."""
    for layer in found:
        rows, columns = layer.matrix().shape
        misfit = pattern.misfit(rows // layer.groups, columns)
        if misfit is not None:
            raise ModelError(f"{where}: pattern {pattern.name} does not fit {layer.name}: {misfit}; exclude it")


def block_of(model: Model, name: str) -> str | None:
    """The block that a layer of this name is in, None for one outside; a plain nn.Module is one block ""."""
    if not model.is_transformers:
        return ""
    lists = (place for place, part in model.module.named_modules() if isinstance(part, torch.nn.ModuleList))
    home = next((place for place in lists if name.startswith(f"{place}.")), None)
    return None if home is None else ".".join(name.split(".")[: home.count(".") + 2])
