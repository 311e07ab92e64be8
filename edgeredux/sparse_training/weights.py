"""The weights that are trained sparse, as they are stored and as matrices [outputs, inputs]."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch

from edgeredux.errors import ModelError, RecipeError

KINDS: tuple[type[torch.nn.Module], ...] = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def _is_transposed(part: torch.nn.Module) -> bool:
    """GPT-2 names its own kind of Linear Conv1D; its weight is stored [inputs, outputs]."""
    loaded = sys.modules.get("transformers.pytorch_utils")  # nobody has such a module without having imported it
    return loaded is not None and isinstance(part, loaded.Conv1D)


@dataclass(frozen=True)
class Weight:
    """The weight of one layer. `name` is the parameter's, `layer` the module's."""

    name: str
    layer: str
    value: torch.nn.Parameter
    transposed: bool
    kernel: int  # weights that one input channel has in one output row

    def matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor shaped like the weight as [outputs, inputs]; a convolution's kernel positions are inputs."""
        return tensor.T if self.transposed else tensor.flatten(1)

    def stored(self, matrix: torch.Tensor) -> torch.Tensor:
        """The inverse of `matrix`."""
        return matrix.T if self.transposed else matrix.reshape(self.value.shape)


def sparse_weights(module: torch.nn.Module, blocks_only: bool, exclude: Sequence[str], where: str) -> list[Weight]:
    """The weights of Linear and convolution layers, in the module's order, each once.

    With `blocks_only` (transformers) those in encoder and decoder blocks, the items of the outermost module lists:
    embeddings, poolers and heads stand outside. A weight that is an embedding table too is left out, and so are layers
    whose name matches a pattern of `exclude` (shell style). Raises RecipeError for a pattern that matches nothing,
    ModelError when nothing is left.
    """
    lists = [name for name, part in module.named_modules() if isinstance(part, torch.nn.ModuleList)]
    seen = {id(part.weight) for part in module.modules() if isinstance(part, torch.nn.Embedding)}
    found: list[Weight] = []
    for layer, part in module.named_modules():
        turned = _is_transposed(part)
        if not isinstance(part, KINDS) and not turned:
            continue
        if blocks_only and not any(layer.startswith(f"{home}.") for home in lists):
            continue
        value = part.weight
        if not isinstance(value, torch.nn.Parameter) or id(value) in seen:
            continue
        seen.add(id(value))
        kernel = value[0, 0].numel() if value.dim() > 2 else 1
        found.append(Weight(f"{layer}.weight" if layer else "weight", layer, value, turned, kernel))
    for pattern in exclude:
        if not any(fnmatch(weight.layer, pattern) for weight in found):
            some = ", ".join(weight.layer for weight in found[:3]) or "none"
            raise RecipeError(f"{where}: exclude {pattern!r} matches no layer. Layers: {some}, ... ({len(found)})")
    kept = [weight for weight in found if not any(fnmatch(weight.layer, pattern) for pattern in exclude)]
    if not kept:
        raise ModelError(f"{where}: the model has no Linear or convolution layer that could be trained sparse")
    return kept
