"""Pruning of a checkpoint that is larger than memory: block by block, the rest on the disk.

The step `prune` as a recipe has it, on a module whose weights are read from the safetensors files when calibration
comes to a block and written, pruned, to the new files when it has left it; then the memory is free again. What memory
holds: two blocks in float32, one layer's Gram matrix and what solves it, and one block's inputs of all batches. What a
killed run needs to go on at the last finished block, and to end with the same bytes, is what came out of that block:
4 * positions * width bytes on the disk. Arithmetic is float32; a pruned matrix is rounded to the checkpoint's type
before the batches go on through it, so later layers see what is really stored.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from edgeredux import bundle
from edgeredux.errors import BundleError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.checkpoint import DTYPES, Checkpoint
from edgeredux.pruning.layers import Layer, block_of, layers
from edgeredux.pruning.methods import method
from edgeredux.pruning.passage import Passage, State
from edgeredux.pruning.resident import Resident
from edgeredux.pruning.scores import statistics_without_inputs
from edgeredux.pruning.shards import Shards
from edgeredux.pruning.statistics import Collector
from edgeredux.pruning.streamed import REPORT, BlockLine, Streamed, finished, report_text
from edgeredux.pruning.unstructured import Prune
from edgeredux.pruning.walk import stops
from edgeredux.pruning.work import Work
from edgeredux.seams import Feed, Progress, silent
from edgeredux.workspace import Workspace, storage_error, write_atomic

_COPIED = (".json", ".txt", ".model", ".jinja", ".md")


@dataclass(frozen=True)
class StoredLayer(Layer):
    """A layer whose weights are kept in the checkpoint's type."""

    dtype: torch.dtype

    def store(self, matrix: torch.Tensor) -> None:
        """See Layer; rounded to `dtype` first."""
        super().store(matrix.to(self.dtype).float())


def prune_checkpoint(
    model: Model,
    folder: Path,
    out: Path,
    step: Prune,
    feeds: Sequence[Feed],
    *,
    seed: int = 0,
    threads: int = 1,
    shard_mb: int = 2000,
    progress: Progress = silent,
) -> Streamed:
    """The checkpoint in `folder` pruned by `step` into the new folder `out`, which is there whole or not at all.

    `model` is its skeleton (loading.skeleton). New files hold at most `shard_mb` million bytes of tensors each. The
    same call goes on after a kill (`out`.partial keeps what is finished), and returns what is there when it finished
    before. Raises RecipeError for what needs the whole model at once (gradients, allocations over all layers, the dense
    model as reference), ModelError for a checkpoint that cannot be used, BundleError when `out` holds something else.
    """
    blocks = _check(model, step)
    torch.set_num_threads(threads)
    identity = {
        "model": model.sha256,
        "step": repr(step),
        "data": _digest(feeds),
        "seed": seed,
        "threads": threads,
        "shard_mb": shard_mb,
    }
    if (out / REPORT).is_file():
        return finished(out, identity)
    bundle.check_out(out)
    if out.is_dir() and any(out.iterdir()):
        raise BundleError(f"{out}: is not empty; nothing is overwritten, choose another folder")
    with Workspace(out, identity) as workspace, Checkpoint(folder, model.source) as checkpoint:
        with Resident(model, blocks, checkpoint) as resident:
            run = _Run(model, step, blocks, checkpoint, resident, workspace.root, shard_mb, progress)
            try:
                run.prepare()
                with torch.no_grad():
                    run.prune(feeds, seed)
                _copy_rest(folder, run.made)
                lines = tuple(run.lines)
                write_atomic(run.made / REPORT, report_text(identity, lines, run.shards.files))
                bundle.publish(run.made, out)
            except OSError as problem:
                raise storage_error(problem, workspace.root) from problem
        workspace.remove()
    return Streamed(out, lines, tuple(run.shards.files))


def _check(model: Model, step: Prune) -> list[str]:
    """The names of the model's blocks; raises what `prune_checkpoint` says."""
    chosen = method(step.method)
    alone = "prune: a checkpoint that is read block by block cannot have"
    if chosen.needs == "gradients":
        raise RecipeError(
            f"{alone} a method that takes gradients through the whole model; use magnitude, random, wanda, sparsegpt "
            "or alps"
        )
    if step.allocation != "uniform":
        raise RecipeError(f"{alone} allocation {step.allocation}, which compares all layers beforehand; use uniform")
    if step.reference != "layer":
        raise RecipeError(f"{alone} reference {step.reference}, which runs the dense model beside; use layer")
    step.check(model)
    homes: dict[str, None] = {}
    for layer in layers(model, step.exclude):
        block = block_of(model, layer.name)
        assert block is not None
        homes[block.rpartition(".")[0]] = None
    if len(homes) > 1:
        raise ModelError(
            f"prune: model {model.name} has {len(homes)} stacks of blocks ({', '.join(homes)}), and only one can be "
            "read block by block; load it whole (edgeredux.prune)"
        )
    home = next(iter(homes))
    stack = model.module.get_submodule(home)
    return [f"{home}.{name}" for name, _ in stack.named_children()]


class _Run:
    """One checkpoint on its way, on the disk as far as it is finished."""

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
        self.lines: list[BlockLine] = []
        self.since = time.monotonic()
        self.said = "pruning block by block"

    def prepare(self) -> None:
        """The new files with everything that stands outside the blocks, and what an earlier run has finished."""
        progress = self.root / "progress.json"
        if progress.is_file():
            self.lines = [BlockLine(**line) for line in json.loads(progress.read_text(encoding="utf-8"))]
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
                    self.work.solve(layer, [known[layer.name]] * layer.groups, self.removed[layer.name])
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
                error = self.work.visit(layer, inputs, collector, self.removed[layer.name])
                if error is not None:
                    self.errors[layer.name] = error
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
        )
        self.since = now
        self.lines.append(line)
        self._remember()
        self._state(number).unlink(missing_ok=True)
        self.said = (
            f"{line.name}: {line.seconds:.1f} s, {sum(line.zeros.values()):,} of {line.weights:,} weights are zero"
        )
        self.progress(self.said, len(self.lines), len(self.blocks))

    def _remember(self) -> None:
        write_atomic(self.root / "progress.json", json.dumps([asdict(line) for line in self.lines], indent=1) + "\n")

    def _state(self, number: int) -> Path:
        return self.root / f"after-{number}.safetensors"


def _copy_rest(folder: Path, made: Path) -> None:
    """Config, tokenizer, generation config, licence and pooling of the checkpoint, as they are."""
    for path in sorted([*folder.iterdir(), *folder.glob("*_*/config.json")]):
        inside = path.relative_to(folder)
        named = path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
        if not path.is_file() or path.name.endswith(".index.json") or not (path.suffix in _COPIED or named):
            continue
        (made / inside).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, made / inside)


def _digest(feeds: Sequence[Feed]) -> str:
    digest = hashlib.sha256()
    for feed in feeds:
        for name, value in sorted(feed.items()):
            digest.update(f"{name}:{value.dtype}:{value.shape}\n".encode())
            digest.update(value.tobytes())
    return digest.hexdigest()
