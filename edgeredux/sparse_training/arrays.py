"""What `edgeredux.sparse_train` is given to learn from, as arrays by name with samples on the first axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from edgeredux.errors import DataError
from edgeredux.seams import Feed

Array: TypeAlias = "torch.Tensor | np.ndarray[Any, Any]"
Samples: TypeAlias = "tuple[Array, Array] | Mapping[str, Array]"
AnyData: TypeAlias = "Samples | Iterable[Samples]"
INPUTS, TARGETS = "inputs", "targets"
_ALLOWED = "(inputs, targets), a mapping of arrays by argument name, or batches of either kind"


def as_arrays(data: AnyData) -> tuple[Feed, bool]:
    """The arrays, and whether they are inputs and targets. Raises DataError for what is neither, uneven or NaN."""
    if isinstance(data, Mapping) or (isinstance(data, tuple) and not any(isinstance(x, (tuple, list)) for x in data)):
        parts: Sequence[Any] = [data]
    elif isinstance(data, Iterable) and not isinstance(data, (torch.Tensor, np.ndarray, str)):
        parts = list(data)
    else:
        raise DataError(f"sparse_train: data must be {_ALLOWED}, not {type(data).__name__}")
    named = [_named(part) for part in parts]
    if not named or any(part.keys() != named[0].keys() for part in named):
        raise DataError("sparse_train: data holds no batch, or batches with different names")
    arrays = {name: _joined(name, [part[name] for part in named]) for name in named[0]}
    counts = {name: len(value) for name, value in arrays.items()}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        raise DataError(f"sparse_train: the arrays have different or no samples: {counts}")
    return arrays, not isinstance(parts[0], Mapping)


def _named(part: Any) -> Feed:
    if isinstance(part, (tuple, list)) and len(part) == 2:
        part = {INPUTS: part[0], TARGETS: part[1]}
    if not isinstance(part, Mapping) or not part:
        raise DataError(f"sparse_train: data must be {_ALLOWED}")
    return {
        str(name): value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        for name, value in part.items()
    }


def _joined(name: str, values: Sequence[Any]) -> Any:
    if any(value.ndim == 0 or value.shape[1:] != values[0].shape[1:] for value in values):
        raise DataError(f"sparse_train: {name!r} has samples of different shapes; pad them to one")
    whole = np.concatenate(values) if len(values) > 1 else values[0]
    if whole.dtype.kind not in "fiub":
        raise DataError(f"sparse_train: {name!r} holds {whole.dtype}, not numbers")
    if whole.dtype.kind == "f" and not np.isfinite(whole).all():
        raise DataError(f"sparse_train: {name!r} holds NaN or infinite values")
    return whole
