"""Sessions timed in turns inside one process, wall clock beside the processor time of the calling thread."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeredux import machine, measure
from edgeredux.rounds import turn


@dataclass(frozen=True)
class Timed:
    """Milliseconds [rounds] by label. `cpu`: processor time of the thread that ran, which others' turns do not count
    in; it is the whole work at one thread only, and None at more."""

    wall: Mapping[str, np.ndarray]
    cpu: Mapping[str, np.ndarray] | None
    noise: tuple[str, ...]

    def gain(self, label: str, base: str, *, clock: str = "best") -> float:
        """How many times faster `label` is than `base`: the median of the ratios of each round's pair."""
        samples = self.wall if clock == "wall" or self.cpu is None else self.cpu
        return float(np.median(samples[base] / samples[label]))

    def median(self, label: str) -> float:
        return float(np.median((self.wall if self.cpu is None else self.cpu)[label]))


class Bound:
    """A session on the CPU with its inputs and outputs bound to memory that stays: a call is the graph and little else.

    Without this, NumPy makes every output anew, and the page faults of 1.5 MB cost as much as a small layer.
    """

    def __init__(self, path: Path, feed: Mapping[str, Any], threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [item.name for item in self.session.get_outputs()]
        wanted = {item.name for item in self.session.get_inputs()}
        taken = {name: value for name, value in feed.items() if name in wanted}
        self.outputs = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.session.run(names, taken)]
        self.inputs = [ort.OrtValue.ortvalue_from_numpy(array) for array in taken.values()]
        self.binding = self.session.io_binding()
        for name, value in zip(taken, self.inputs, strict=True):
            self.binding.bind_ortvalue_input(name, value)
        for name, value in zip(names, self.outputs, strict=True):
            self.binding.bind_ortvalue_output(name, value)

    def __call__(self) -> None:
        self.session.run_with_iobinding(self.binding)


def compare(files: Mapping[str, Path], feed: Mapping[str, Any], threads: int, rounds: int, warmup: int = 3) -> Timed:
    """Every file once a round, the order turning as rounds.turn says."""
    calls = {label: Bound(path, feed, threads) for label, path in files.items()}
    for _ in range(warmup):
        for call in calls.values():
            call()
    wall: dict[str, list[int]] = {label: [] for label in calls}
    cpu: dict[str, list[int]] = {label: [] for label in calls}
    gc.collect()
    gc.disable()
    watch = machine.Watch().start()
    for number in range(rounds):
        for label in turn(list(calls), number):
            began, began_cpu = time.perf_counter_ns(), time.thread_time_ns()
            calls[label]()
            cpu[label].append(time.thread_time_ns() - began_cpu)
            wall[label].append(time.perf_counter_ns() - began)
    facts = watch.stop()
    gc.enable()
    as_ms = {label: np.array(values) / 1e6 for label, values in wall.items()}
    alone = {label: np.array(values) / 1e6 for label, values in cpu.items()} if threads == 1 else None
    return Timed(as_ms, alone, measure.machine_noise(facts, threads))
