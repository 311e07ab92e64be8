"""What PyTorch's 2:4 kernels make of a file's weights on this GPU: each layer dense and sparse, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from edgeredux.readings import Missing, percentile
from edgeredux.sparsity import semi_structured

WARMUP = 10
RUNS = 50


def table(path: Path, positions: int) -> list[dict[str, Any]] | Missing:
    """A row a 2:4 weight: layer, shape, dense_us, sparse_us, gain; for `positions` rows of input in float16.

    Median of 50 products each, interleaved. Missing, with the reason, without a GPU that has such kernels or where no
    weight of the file fits.
    """
    if (reason := semi_structured.unavailable()) is not None:
        return Missing(reason)
    rows: list[dict[str, Any]] = []
    left: list[str] = []
    for name, weight in matrices(path):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float16)
        layer.weight = torch.nn.Parameter(torch.from_numpy(weight).half(), requires_grad=False)
        found = semi_structured.to_semi_structured(torch.nn.Sequential(layer))
        if isinstance(found, Missing):
            left.append(f"{name}: {found.reason}")
            continue
        place = next(found.module.parameters()).device
        dense_us, sparse_us = _timed(torch.nn.Sequential(layer).to(place), found.module, positions, place)
        shape = f"{weight.shape[1]} to {weight.shape[0]}"
        rows.append(
            {
                "layer": name,
                "shape": shape,
                "positions": positions,
                "dense_us": dense_us,
                "sparse_us": sparse_us,
                "gain": dense_us / sparse_us,
            }
        )
    if not rows:
        return Missing("; ".join(left[:2]) or "the file has no constant matrix that is multiplied")
    return rows


def matrices(path: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Name and weight [outputs, inputs] of every MatMul and Gemm with a constant float matrix."""
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        if weight.ndim != 2 or weight.dtype not in (np.float32, np.float16):
            continue
        turned = any(item.name == "transB" and item.i for item in node.attribute)
        yield node.name or node.output[0], np.ascontiguousarray(weight if turned else weight.T)


def _timed(dense: torch.nn.Module, sparse: torch.nn.Module, positions: int, place: torch.device) -> tuple[float, float]:
    width = next(dense.parameters()).shape[1]
    given = torch.randn(positions, width, generator=torch.Generator().manual_seed(0)).half().to(place)
    samples: dict[int, list[float]] = {0: [], 1: []}
    with torch.inference_mode():
        for turn in range(WARMUP + RUNS):
            for number, module in enumerate((dense, sparse)):
                took = _clocked(lambda module=module: module(given), place)  # type: ignore[misc]
                if turn >= WARMUP:
                    samples[number].append(took)
    return percentile(samples[0], 0.5), percentile(samples[1], 0.5)


def _clocked(call: Callable[[], object], place: torch.device) -> float:
    """Microseconds of one call, waited for."""
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    begun = time.perf_counter()
    call()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return (time.perf_counter() - begun) * 1e6
