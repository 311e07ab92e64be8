"""A checkpoint on its way through the blocks, on the disk as far as it is finished.

Beside the new weight files stand progress.json, a line for each finished block, and what came out of the last of them
(state.py). A block's weights and state are on the disk for certain before its line is written, so a kill at any moment
costs the block that was being pruned and nothing else.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from edgeredux.errors import StorageError, one_line
from edgeredux.model import Model
from edgeredux.pruning.checkpoint import DTYPES, Checkpoint
from edgeredux.pruning.layers import Layer, layers
from edgeredux.pruning.methods import method
from edgeredux.pruning.passage import Passage
from edgeredux.pruning.resident import Resident
from edgeredux.pruning.scores import statistics_without_inputs
from edgeredux.pruning.shards import Shards
from edgeredux.pruning.state import State
from edgeredux.pruning.statistics import Collector
from edgeredux.pruning.streamed import BlockLine
from edgeredux.pruning.unstructured import Prune
from edgeredux.pruning.walk import stops
from edgeredux.pruning.work import Work
from edgeredux.seams import Feed, Progress
from edgeredux.workspace import write_atomic


@dataclass(frozen=True)
class StoredLayer(Layer):
    """A layer whose weights are kept in the checkpoint's type."""

    dtype: torch.dtype

    def store(self, matrix: torch.Tensor) -> None:
        """See Layer; rounded to `dtype` first."""
        super().store(matrix.to(self.dtype).float())


class BlockRun:
    """Fills `root`/checkpoint block by block; `lines` says what is finished."""

    def __init__(
        self,
        model: Model,
        step: Prune,
        blocks: Sequence[str],
        checkpoint: Checkpoint,
        resident: Resident,
        root: Path,
        shard_mb: int,
        progress: Progress,
    ) -> None:
        chosen = method(step.method)
        self.model, self.blocks, self.checkpoint, self.resident = model, blocks, checkpoint, resident
        self.root, self.made, self.progress = root, root / "checkpoint", progress
        self.shards = Shards(self.made, list(checkpoint.tensors.values()), shard_mb * 1_000_000)
        found = []
        for layer in layers(model, step.exclude):
            stored = checkpoint.tensors[resident.stored[f"{layer.name}.weight"]]
            found.append(StoredLayer(layer.name, layer.module, DTYPES[stored.dtype]))
        self.work = Work(found, chosen, step.pattern_of(chosen))
        self.removed = step.uniform_counts(model)
        self.errors: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.lines: list[BlockLine] = []
        self.since = time.monotonic()
        self.said = "pruning: block by block"

    def prepare(self) -> None:
        """The new files with everything that stands outside the blocks, and what an earlier run has finished.

        Raises StorageError where that cannot be read.
        """
        progress = self.root / "progress.json"
        if progress.is_file():
            try:
                self.lines = [BlockLine(**line) for line in json.loads(progress.read_text(encoding="utf-8"))]
            except (ValueError, TypeError) as problem:
                raise StorageError(
                    one_line(f"{progress}: damaged; delete the folder it is in to begin anew: {problem}")
                ) from problem
            return
        shutil.rmtree(self.made, ignore_errors=True)
        self.made.mkdir()
        self.shards.create()
        inside = {self.resident.stored[name] for block in self.blocks for name in self.resident.tensors(block)}
        outside = [name for name in self.checkpoint.tensors if name not in inside]
        for place, name in enumerate(outside):
            self.progress("copying what is not pruned", place, len(outside))
            self.shards.write(name, self.checkpoint.pieces(name))
        self.shards.sync()
        self._remember()

    def prune(self, feeds: Sequence[Feed], seed: int) -> None:
        """Every block that is not finished yet."""
        done = len(self.lines)
        self.since = time.monotonic()
        if self.work.method.needs == "weights":
            known = statistics_without_inputs(
                self.model, [layer.name for layer in self.work.layers], self.work.method, (), seed
            )
            for number in range(done, len(self.blocks)):
                self.resident.enter(self.blocks[number])
                for layer in self._layers(number):
                    self.progress(self.said, number, len(self.blocks))
                    started = time.monotonic()
                    self.work.solve(layer, known[layer.name].split(layer.groups), self.removed[layer.name])
                    self.seconds[layer.name] = time.monotonic() - started
                self._left(number, State())
                self.resident.leave(self.blocks[number])
            return
        todo = [layer for number in range(done, len(self.blocks)) for layer in self._layers(number)]
        given = State.load(self._state(done)) if done > 0 and todo else None
        collector = Collector(self.work.method.needs)
        passage = Passage(self.model, self.blocks, len(feeds), self.resident, self._left, done=done, given=given)
        with passage:
            for layer, inputs in stops(self.model, todo, feeds) if todo else ():
                self.progress(self.said, self._part(layer, done, len(todo)), len(self.blocks))
                started = time.monotonic()
                error = self.work.visit(layer, inputs, collector, self.removed[layer.name])
                if error is not None:
                    self.errors[layer.name] = error
                self.seconds[layer.name] = time.monotonic() - started
                del inputs
            passage.finish()

    def _layers(self, number: int) -> list[Layer]:
        return [layer for layer in self.work.layers if layer.name.startswith(f"{self.blocks[number]}.")]

    def _part(self, layer: Layer, done: int, todo: int) -> float:
        """How many blocks are finished, this one in part."""
        place = [other.name for other in self.work.layers[-todo:]].index(layer.name)
        return done + place * (len(self.blocks) - done) / todo

    def _left(self, number: int, state: State) -> None:
        """A block is pruned and no batch needs it any more: on the disk with it."""
        here = self._layers(number)
        pruned = {f"{layer.name}.weight" for layer in here}
        for name in self.resident.tensors(self.blocks[number]):
            stored = self.resident.stored[name]
            if name in pruned:
                self.shards.write_tensor(stored, self.resident.value(name), self.checkpoint.tensors[stored].dtype)
            else:
                self.shards.write(stored, self.checkpoint.pieces(stored))
        self.shards.sync()
        if state.batches:
            state.save(self._state(number + 1))
        now = time.monotonic()
        line = BlockLine(
            self.blocks[number],
            sum(self.resident.value(name).numel() for name in pruned),
            {layer.name: int((layer.matrix() == 0).sum()) for layer in here},
            {layer.name: self.errors[layer.name] for layer in here if layer.name in self.errors},
            now - self.since,
            {layer.name: self.seconds[layer.name] for layer in here},
        )
        self.since = now
        self.lines.append(line)
        self._remember()
        self._state(number).unlink(missing_ok=True)
        zeros = sum(line.zeros.values())
        self.said = f"pruning: {line.name}: {line.seconds:.1f} s, {zeros:,} of {line.weights:,} weights are zero"
        self.progress(self.said, len(self.lines), len(self.blocks))

    def _remember(self) -> None:
        write_atomic(self.root / "progress.json", json.dumps([asdict(line) for line in self.lines], indent=1) + "\n")

    def _state(self, number: int) -> Path:
        return self.root / f"after-{number}.safetensors"
