"""Arrays as a model file wants them: by name, dtype and shape, checked; and quantised outputs read back as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeredux.errors import ArtifactError
from edgeredux.seams import Feed


@dataclass(frozen=True)
class Port:
    """An input or output of a model file. None in `shape` is any length; `scale` is 0 where nothing is quantised."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    scale: float = 0.0
    zero_point: int = 0


def fit(feed: Feed, ports: Sequence[Port], where: str, order: Sequence[str] | None = None) -> Feed:
    """The feed's arrays by port name, cast to the port's dtype where no value is lost.

    A port takes the array of its name; where names differ altogether, `order` (feed names in the file's input order)
    says which. Floats into an integer port are quantised with the port's scale and zero point. Raises ArtifactError
    on an absent array, another shape, a value that does not fit.
    """
    names = dict(zip((port.name for port in ports), order, strict=True)) if order else {p.name: p.name for p in ports}
    fitted: Feed = {}
    for port in ports:
        if names[port.name] not in feed:
            raise ArtifactError(f"{where}: nothing to feed input {port.name!r}. The data has: {', '.join(feed)}")
        fitted[port.name] = cast(feed[names[port.name]], port, where)
    return fitted


def cast(array: NDArray[Any], port: Port, where: str) -> NDArray[Any]:
    """The array in the port's dtype and shape; raises ArtifactError instead of changing a value."""
    if len(array.shape) != len(port.shape) or any(
        want is not None and have != want for have, want in zip(array.shape, port.shape, strict=True)
    ):
        wanted = [n if n is not None else "?" for n in port.shape]
        raise ArtifactError(f"{where}: input {port.name!r} takes shape {wanted}, the data has {list(array.shape)}")
    if array.dtype == port.dtype:
        return np.ascontiguousarray(array)
    integers = np.issubdtype(port.dtype, np.integer)
    if integers and np.issubdtype(array.dtype, np.floating):
        if port.scale <= 0:
            raise ArtifactError(f"{where}: input {port.name!r} takes {port.dtype}, the data has {array.dtype}")
        limits = np.iinfo(port.dtype)
        levels = np.rint(array.astype(np.float64) / port.scale) + port.zero_point
        return np.asarray(np.clip(levels, limits.min, limits.max).astype(port.dtype))
    if integers and array.size:
        limits = np.iinfo(port.dtype)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise ArtifactError(f"{where}: input {port.name!r} is {port.dtype}; values {low}..{high} do not fit")
    return np.ascontiguousarray(array.astype(port.dtype))


def numbers(outputs: Mapping[str, NDArray[Any]], ports: Sequence[Port]) -> Feed:
    """Outputs as the numbers they mean: quantised ones dequantised to float32, the others as they are."""
    by_name = {port.name: port for port in ports}
    read: Feed = {}
    for name, array in outputs.items():
        port = by_name[name]
        if port.scale > 0 and np.issubdtype(array.dtype, np.integer):
            array = ((array.astype(np.float64) - port.zero_point) * port.scale).astype(np.float32)
        read[name] = array
    return read


def shapes(feeds: Sequence[Feed]) -> str:
    """The distinct input shapes in words, e.g. "1x64"; longest list of three."""
    seen: dict[str, None] = {}
    for feed in feeds:
        first = next(iter(feed.values()))
        seen["x".join(str(n) for n in first.shape) or "scalar"] = None
    names = list(seen)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def distinct_shapes(feeds: Sequence[Feed]) -> int:
    """How many different input shapes there are: each must be warmed up once."""
    return len({tuple(array.shape for array in feed.values()) for feed in feeds})
