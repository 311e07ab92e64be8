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
from collections.abc import Sequence
from pathlib import Path

import torch

from edgeredux import bundle
from edgeredux.errors import BundleError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.block_run import BlockRun
from edgeredux.pruning.checkpoint import Checkpoint, copy_rest
from edgeredux.pruning.layers import block_of, layers
from edgeredux.pruning.methods import method
from edgeredux.pruning.resident import Resident
from edgeredux.pruning.streamed import REPORT, Streamed, finished, report_text
from edgeredux.pruning.unstructured import Prune
from edgeredux.seams import Feed, Progress, silent
from edgeredux.workspace import Workspace, storage_error, write_atomic


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
    model as reference, another order of units), ModelError for a checkpoint that cannot be used, BundleError when `out`
    holds something else.
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
            run = BlockRun(model, step, blocks, checkpoint, resident, workspace.root, shard_mb, progress)
            try:
                run.prepare()
                with torch.no_grad():
                    run.prune(feeds, seed)
                copy_rest(folder, run.made)
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
    if step.reorder:
        raise RecipeError(f"{alone} reorder, which scores all layers beforehand; leave it out")
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


def _digest(feeds: Sequence[Feed]) -> str:
    digest = hashlib.sha256()
    for feed in feeds:
        for name, value in sorted(feed.items()):
            digest.update(f"{name}:{value.dtype}:{value.shape}\n".encode())
            digest.update(value.tobytes())
    return digest.hexdigest()
