"""Sessions timed in turns inside one process, wall clock beside the processor time of the calling thread."""

from __future__ import annotations

import fcntl
import gc
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeredux import machine, measure
from edgeredux.rounds import turn

_KEPT = 0.9  # of the processor time a call of this file takes where nobody disturbs it


@dataclass(frozen=True)
class Timed:
    """Milliseconds [rounds] by label.

    `cpu`: processor time of the thread that ran, which others' turns do not count in; it is the whole work at one
    thread only, and None at more. `share`: processor time of the whole process by wall clock time, [rounds] by label.
    """

    wall: Mapping[str, np.ndarray]
    cpu: Mapping[str, np.ndarray] | None
    share: Mapping[str, np.ndarray]
    noise: tuple[str, ...]

    def gain(self, label: str, base: str) -> float:
        """How many times faster `label` is than `base`.

        At one thread the median of the ratios of each round's pair in processor time. At more the ratio of the median
        wall clock times of the undisturbed calls.
        """
        if self.cpu is not None:
            return float(np.median(self.cpu[base] / self.cpu[label]))
        return self.median(base) / self.median(label)

    def wall_gain(self, label: str, base: str) -> float:
        """The median of the ratios of each round's pair on the wall clock, other processes' turns included."""
        return float(np.median(self.wall[base] / self.wall[label]))

    def median(self, label: str) -> float:
        if self.cpu is not None:
            return float(np.median(self.cpu[label]))
        return float(np.median(self.wall[label][self.undisturbed(label)]))

    def undisturbed(self, label: str) -> np.ndarray:
        """Which calls [rounds] had their processors: a thread that waits for one uses no time while the clock runs."""
        share = self.share[label]
        return share >= _KEPT * np.quantile(share, 0.95)


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


@dataclass(frozen=True)
class How:
    """How to time: threads of ONNX Runtime, rounds, and whether other processes have to wait meanwhile.

    `exclusive` is for busy machines: where one of several threads waits for its core, so do the others, and what other
    processes do to the caches counts in processor time, too.
    """

    threads: int
    rounds: int
    exclusive: bool = False

    @contextmanager
    def priority(self) -> Iterator[None]:
        """Real-time priority where exclusive (takes privileges), of threads made inside, too."""
        if not self.exclusive:
            yield
            return
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        with Path(tempfile.gettempdir(), "edgeredux-exclusive").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two of these at once would be no exclusion
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            try:
                yield
            finally:
                os.sched_setscheduler(0, *before)


def compare(files: Mapping[str, Path], feed: Mapping[str, Any], how: How, warmup: int = 3) -> Timed:
    """Every file once a round, the order turning as rounds.turn says."""
    with how.priority():
        return _compare(files, feed, how, warmup)


def _compare(files: Mapping[str, Path], feed: Mapping[str, Any], how: How, warmup: int) -> Timed:
    calls = {label: Bound(path, feed, how.threads) for label, path in files.items()}
    for _ in range(warmup):
        for call in calls.values():
            call()
    wall: dict[str, list[int]] = {label: [] for label in calls}
    cpu: dict[str, list[int]] = {label: [] for label in calls}
    used: dict[str, list[int]] = {label: [] for label in calls}
    gc.collect()
    gc.disable()
    watch = machine.Watch().start()
    for number in range(how.rounds):
        for label in turn(list(calls), number):
            began_all, began, began_cpu = time.process_time_ns(), time.perf_counter_ns(), time.thread_time_ns()
            calls[label]()
            cpu[label].append(time.thread_time_ns() - began_cpu)
            wall[label].append(time.perf_counter_ns() - began)
            used[label].append(time.process_time_ns() - began_all)
    facts = watch.stop()
    gc.enable()
    as_ms = {label: np.array(values) / 1e6 for label, values in wall.items()}
    alone = {label: np.array(values) / 1e6 for label, values in cpu.items()} if how.threads == 1 else None
    share = {label: np.array(values) / np.array(wall[label]) for label, values in used.items()}
    return Timed(as_ms, alone, share, measure.machine_noise(facts, how.threads))
