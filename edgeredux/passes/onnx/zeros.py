"""Whether the zeros of weights are still zeros after a quantisation, weight by weight and place by place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from edgeredux.errors import InternalError
from edgeredux.passes.onnx import files

Array: TypeAlias = "np.ndarray[Any, Any]"

# What quantisers put behind a weight's name, ours and ONNX Runtime's.
_SUFFIXES = ("", "_quantized", "_row_int8")
_TURNED = "_Transposed"  # ONNX Runtime's quantiser turns the weight of a Gemm without transB


def places(model: ir.Model) -> dict[str, Array]:
    """Of every float weight of two or more axes that has a zero: a bool array, True where it is zero."""
    found = {}
    for graph in files.graphs(model):
        for value in graph.initializers.values():
            array = files.constant(value)
            if array is not None and array.dtype.kind == "f" and array.ndim >= 2 and not array.all():
                found[str(value.name)] = array == 0
    return found


def check(before: Mapping[str, Array], model: ir.Model, what: str) -> dict[str, Any]:
    """{"weights", "before", "after", "not_found"}: zeros of these weights before, and in their quantised forms.

    `not_found` names weights that have no form in `model` that this function can read; their zeros are not counted.
    Raises InternalError when a zero became something else: a pruned model would be sold as sparse and not be.
    """
    values = {str(v.name): v for graph in files.graphs(model) for v in graph.initializers.values()}
    told: dict[str, Any] = {"weights": 0, "before": 0, "after": 0, "not_found": []}
    for name, zero in before.items():
        forms = list(_forms(name, zero.shape, values))
        if not forms:
            told["not_found"].append(name)
            continue
        for form in forms:
            if lost := int((zero & ~form).sum()):
                raise InternalError(f"{what}: {lost} of {int(zero.sum())} zeros of weight {name!r} did not stay zeros")
        told["weights"] += 1
        told["before"] += int(zero.sum())
        told["after"] += int(forms[0].sum())
    return told


def _forms(name: str, shape: tuple[int, ...], values: Mapping[str, ir.Value]) -> Iterator[Array]:
    """Where each form of this weight is zero, turned back to the weight's own axes."""
    for turned in ("", _TURNED):
        for suffix in _SUFFIXES:
            array = files.constant(values.get(name + turned + suffix))
            if array is None or array.shape != (shape[::-1] if turned else shape):
                continue
            form: Array = array == _zero_point(values.get(f"{name}{turned}_zero_point"), array)
            yield form.T if turned else form


def _zero_point(value: ir.Value | None, array: Array) -> Array:
    """The integer that means zero, shaped to compare with `array`: one for all, or one an output channel."""
    point = files.constant(value)
    if point is None or array.dtype.kind == "f" or not point.any():
        return np.zeros((), array.dtype)
    if point.size == 1:
        return point.reshape(())
    axis = max(index for index, size in enumerate(array.shape) if size == point.size)
    return point.reshape([-1 if index == axis else 1 for index in range(array.ndim)])
