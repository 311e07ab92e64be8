"""2:4 weights handed to PyTorch's sparse kernels for NVIDIA GPUs."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch

from edgeredux.readings import Missing
from edgeredux.sparsity.patterns import parse

_CAPABILITY = (8, 0)  # Ampere brought sparse tensor cores
# Rows and columns of a weight are multiples of these (torch.sparse.SparseSemiStructuredTensor, CUTLASS).
_MULTIPLES = {torch.float16: (32, 64), torch.bfloat16: (32, 64), torch.int8: (16, 128)}


@dataclass(frozen=True)
class SemiStructured:
    """A module whose 2:4 Linear weights are sparse tensors; `left` says of the others why they stay dense."""

    module: torch.nn.Module
    converted: tuple[str, ...]
    left: dict[str, str] = field(default_factory=dict)


def unavailable() -> str | None:
    """Why this machine has no 2:4 kernels, None when it has."""
    if not torch.cuda.is_available():
        return "2:4 kernels need an NVIDIA GPU of compute capability 8.0 (Ampere) or newer; PyTorch finds no CUDA here"
    found = torch.cuda.get_device_capability()
    if found < _CAPABILITY:
        return f"2:4 kernels need compute capability 8.0 (Ampere) or newer; this GPU has {found[0]}.{found[1]}"
    return None


def misfit(weight: torch.Tensor) -> str | None:
    """Why a Linear weight [outputs, inputs] cannot become a 2:4 tensor, None when it can."""
    if (broken := parse("2:4").violation(weight)) is not None:
        return f"not 2:4: {broken}"
    if weight.dtype not in _MULTIPLES:
        return f"{str(weight.dtype).removeprefix('torch.')} has no 2:4 kernel; float16, bfloat16 and int8 have"
    rows, columns = _MULTIPLES[weight.dtype]
    if weight.shape[0] % rows or weight.shape[1] % columns:
        return f"{tuple(weight.shape)} is no multiple of {rows} outputs and {columns} inputs"
    return None


def to_semi_structured(module: torch.nn.Module) -> SemiStructured | Missing:
    """A copy of `module` on the GPU, each 2:4 Linear weight by torch.sparse.to_sparse_semi_structured.

    `module` itself is not changed. Missing, with the reason, where the machine has no such kernels or no weight fits.
    """
    if (reason := unavailable()) is not None:
        return Missing(reason)
    found = {name: part for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
    left = {name: why for name, part in found.items() if (why := misfit(part.weight)) is not None}
    fits = [name for name in found if name not in left]
    if not fits:
        why = "; ".join(f"{name}: {left[name]}" for name in list(left)[:3]) or "it has no Linear layer"
        return Missing(f"no weight of this module can be a 2:4 tensor: {why}")
    made = copy.deepcopy(module).cuda()
    for name in fits:
        layer = made.get_submodule(name)
        assert isinstance(layer, torch.nn.Linear)
        sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        layer.weight = torch.nn.Parameter(sparse, requires_grad=False)
    return SemiStructured(made, tuple(fits), left)
