"""Stacks of fully-connected TFLite layers, pruned, rewritten by pass tflite_sparse_weights, timed beside dense ones."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import edgeredux
from edgeredux import isolated
from edgeredux.passes.tflite.quantize import TfliteInt8Dynamic, TfliteInt8Static
from edgeredux.passes.tflite.sparse_weights import TfliteSparseWeights
from edgeredux.rounds import turn
from edgeredux.seams import PassContext

STACKS = {"1024x1024": (1024, 1024, 8), "4096x1024": (1024, 4096, 4)}  # width, hidden width, layers
KINDS = {"float": "1x4", "float-scattered": "unstructured", "int8": "1x16", "int8-dynamic": "1x16"}
RESOLVERS = {"xnnpack": OpResolverType.AUTO, "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}


class Stack(torch.nn.Module):
    """Layers of width -> hidden -> width -> ..., each with ReLU."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        sizes = [width if layer % 2 == 0 else hidden for layer in range(layers + 1)]
        self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.mul_(4.5)  # or the signal fades from layer to layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def measure_stack(stack: str, kind: str, zeros: float, positions: int, rounds: int, folder: Path) -> dict[str, Any]:
    """A stack made, pruned, exported, quantised, rewritten and timed."""
    torch.manual_seed(0)
    width, hidden, layers = STACKS[stack]
    module = edgeredux.prune(Stack(width, hidden, layers).eval(), pattern=KINDS[kind], zeros=zeros)
    random = np.random.default_rng(0)
    feeds = [{"x": random.normal(size=(positions, width)).astype(np.float32)} for _ in range(4)]
    context = PassContext(feeds, folder / "log", folder)
    dense = folder / "dense.tflite"
    isolated.call(
        "lowering.tflite_stacks:export", {"module": module, "feed": feeds[0], "out": dense}, log=context.log, what=stack
    )
    steps = {"int8": TfliteInt8Static(ranges="minmax"), "int8-dynamic": TfliteInt8Dynamic()}
    if kind in steps:
        dense = rewritten(steps[kind], dense, folder / "quantised.tflite", context)[0]
    sparse, details = rewritten(
        TfliteSparseWeights(minimum_gain=0, minimum_saving=0), dense, folder / "sparse.tflite", context
    )
    values = sum(round(item["bytes_before"] * (1 - item["zeros"])) for item in details["weights"])
    ideal = dense.stat().st_size - sum(item["bytes_before"] for item in details["weights"]) + values
    row = {
        "stack": stack,
        "layers": layers,
        "kind": kind,
        "pattern": KINDS[kind],
        "zeros": zeros,
        "positions": positions,
        "bytes_dense": dense.stat().st_size,
        "bytes_sparse": sparse.stat().st_size,
        "bytes_ideal": ideal,
        "over_ideal": round(sparse.stat().st_size / ideal, 4),
        "resolvers": details["resolvers"],
        "expected_gain": round(float(np.median([item["expected_gain"] for item in details["weights"]])), 2),
        "by_rule": {name: by_rule(name, dense, folder, context) for name in ("xnnpack", "builtin")},
    }
    files = {
        f"{form} {resolver}": (path, resolver)
        for form, path in (("dense", dense), ("sparse", sparse))
        for resolver in RESOLVERS
    }
    return {**row, **timed(files, feeds[0]["x"], rounds)}


def export(module: Any, feed: Mapping[str, Any], out: Path) -> None:
    """In a child, for what litert-torch prints: the float file."""
    import litert_torch

    litert_torch.convert(module, sample_kwargs={"x": torch.from_numpy(feed["x"])}).export(str(out))


def rewritten(step: Any, source: Path, out: Path, context: PassContext) -> tuple[Path, dict[str, Any]]:
    """The pass's file; RuntimeError where it declines."""
    arguments = {"step": step, "source": source, "out": out, "context": context}
    change = isolated.call("edgeredux.rewrite:run_pass", arguments, log=context.log, what=out.name)["change"]
    if not change.changed:
        raise RuntimeError(f"{out.name}: {change.why}")
    return out, change.details


def by_rule(resolver: str, dense: Path, folder: Path, context: PassContext) -> dict[str, int]:
    """How many weights take which form where the measured rule decides."""
    step = TfliteSparseWeights(resolver="xnnpack" if resolver == "xnnpack" else "builtin_without_default_delegates")
    arguments = {"step": step, "source": dense, "out": folder / "ruled.tflite", "context": context}
    change = isolated.call("edgeredux.rewrite:run_pass", arguments, log=context.log, what="rule")["change"]
    forms = [item["form"] for item in change.details["weights"]]
    return {form: forms.count(form) for form in ("kernel", "expand", "dense")}


def timed(files: Mapping[str, tuple[Path, str]], x: np.ndarray, rounds: int) -> dict[str, Any]:
    """Median milliseconds by file and resolver, and gains of each resolver's pair."""
    calls = {}
    for label, (path, resolver) in files.items():
        call = Interpreter(str(path), num_threads=1, experimental_op_resolver_type=RESOLVERS[resolver])
        call.allocate_tensors()
        given = call.get_input_details()[0]
        scale, zero = given["quantization"]
        value = np.clip(np.rint(x / scale) + zero, -128, 127) if scale else x
        call.set_tensor(given["index"], value.astype(given["dtype"]))
        calls[label] = call
        for _ in range(3):
            call.invoke()
    cpu: dict[str, list[int]] = {label: [] for label in calls}
    wall: dict[str, list[int]] = {label: [] for label in calls}
    gc.collect()
    for number in range(rounds):
        for label in turn(list(calls), number):
            began, began_cpu = time.perf_counter_ns(), time.thread_time_ns()
            calls[label].invoke()
            cpu[label].append(time.thread_time_ns() - began_cpu)
            wall[label].append(time.perf_counter_ns() - began)

    def gain(samples: Mapping[str, list[int]], a: str, b: str) -> float:
        return round(float(np.median(np.asarray(samples[a]) / np.asarray(samples[b]))), 3)

    return {
        "ms": {label: round(float(np.median(cpu[label])) / 1e6, 4) for label in calls},
        "gain": {name: gain(cpu, f"dense {name}", f"sparse {name}") for name in RESOLVERS},
        "wall_gain": {name: gain(wall, f"dense {name}", f"sparse {name}") for name in RESOLVERS},
    }
