"""Where a unit lives: positions along one dimension of a parameter. Removing units is removing those positions.

An FFN neuron is a row of one or two matrices and a column of a third; a head is rows of a fused matrix; a hidden
dimension is a column of every embedding; a token is a row of one. All are places, and one function removes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

LINEAR = (torch.nn.Linear, Conv1D)  # what multiplies the last dimension by a matrix; GPT-2 calls its own Conv1D


@dataclass(frozen=True)
class Place:
    """`index` [units, positions of a unit] along dimension `dim` of the parameter or buffer named `tensor`."""

    tensor: str
    dim: int
    index: torch.Tensor


def outputs(module: torch.nn.Module, name: str, index: torch.Tensor) -> list[Place]:
    """The places of output features of the Linear (or Conv1D, or convolution) called `name`: weight and bias."""
    part: Any = module.get_submodule(name)
    found = [Place(f"{name}.weight", 1 if isinstance(part, Conv1D) else 0, index)]
    if part.bias is not None:
        found.append(Place(f"{name}.bias", 0, index))
    return found


def inputs(module: torch.nn.Module, name: str, index: torch.Tensor) -> Place:
    """The place of input features of the Linear (or Conv1D, or convolution) called `name`."""
    return Place(f"{name}.weight", 0 if isinstance(module.get_submodule(name), Conv1D) else 1, index)


def sizes(part: torch.nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a Linear or Conv1D."""
    rows, columns = part.weight.shape  # type: ignore[misc]
    return (columns, rows) if isinstance(part, Conv1D) else (rows, columns)


def units(count: int, width: int, start: int = 0) -> torch.Tensor:
    """[count, width]: `count` units of `width` neighbouring positions from `start` on."""
    return start + torch.arange(count * width).view(count, width)


def take(module: torch.nn.Module, places: Iterable[Place], keep: torch.Tensor) -> None:
    """Keep only the units `keep` (sorted numbers) at all places, in place. Tied parameters stay tied.

    Positions that belong to no unit stay. Modules' own size attributes (in_features, num_embeddings, ...) follow.
    """
    tensors = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
    homes: dict[int, list[str]] = {}
    for name, value in tensors.items():
        homes.setdefault(id(value), []).append(name)
    stays: dict[int, dict[int, torch.Tensor]] = {}
    for place in places:
        old = tensors[place.tensor]
        gone = torch.ones(len(place.index), dtype=torch.bool)
        gone[keep] = False
        dims = stays.setdefault(id(old), {})
        left = dims.setdefault(place.dim, torch.ones(old.shape[place.dim], dtype=torch.bool))
        left[place.index[gone].flatten()] = False
    for identity, dims in stays.items():
        names = homes[identity]
        old = tensors[names[0]]
        new = old.detach()
        for dim, left in dims.items():
            new = new.index_select(dim, left.nonzero()[:, 0].to(new.device))
        new = new.clone(memory_format=torch.contiguous_format)
        fresh = torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new
        for name in names:
            owner, _, key = name.rpartition(".")
            setattr(module.get_submodule(owner), key, fresh)
            settle(module.get_submodule(owner))


def settle(part: Any) -> None:
    """Let a module's size attributes say the shape that its weight has now."""
    weight: Any = getattr(part, "weight", None)
    if isinstance(part, torch.nn.Linear):
        part.out_features, part.in_features = weight.shape
    elif isinstance(part, Conv1D):
        part.nx, part.nf = weight.shape
    elif isinstance(part, torch.nn.Embedding):
        part.num_embeddings, part.embedding_dim = weight.shape
    elif isinstance(part, torch.nn.LayerNorm):
        part.normalized_shape = tuple(weight.shape)
    elif isinstance(part, torch.nn.modules.conv._ConvNd) and part.groups == 1 and not part.transposed:
        part.out_channels, part.in_channels = weight.shape[:2]
