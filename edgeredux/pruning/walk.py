"""All calibration batches through the model together, stopping at every layer that wants to be looked at.

Each batch's forward pass is a greenlet. It runs until it enters a layer that nobody has visited yet and waits there;
when all batches wait, the layer is visited with all their inputs and may change; then all go on, through the changed
layer. So every layer sees what the layers pruned before it really produce, at the cost of one forward pass in all,
whatever the architecture (encoder-decoder, several stacks, arguments that differ by layer), and the passes end at the
last layer.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Generator, Sequence
from typing import Any

import greenlet
import torch

from edgeredux.errors import DataError, ModelError
from edgeredux.model import Model
from edgeredux.pruning.layers import Layer
from edgeredux.seams import Feed, Progress, silent

Inputs = list[torch.Tensor]  # one [groups, positions, inputs] a batch


def walk(
    model: Model,
    layers: Sequence[Layer],
    feeds: Sequence[Feed],
    visit: Callable[[Layer, Inputs], None],
    progress: Progress = silent,
) -> None:
    """Call visit(layer, inputs) at every stop; see `stops`."""
    for layer, inputs in stops(model, layers, feeds, progress):
        visit(layer, inputs)
        del inputs


def stops(
    model: Model, layers: Sequence[Layer], feeds: Sequence[Feed], progress: Progress = silent
) -> Generator[tuple[Layer, Inputs], None, None]:
    """Every layer once with its inputs, in the order the model runs them; going on runs it as it is by then.

    `inputs` leave out what attention_mask calls padding. A layer that runs a second time (shared weights) is passed
    through. Raises DataError without feeds, ModelError for NaN or infinite activations and for a layer that no batch
    reaches.
    """
    if not feeds:
        raise DataError("pruning: there is no calibration data")
    names = {layer.name: layer for layer in layers}
    order = {name: place for place, name in enumerate(names)}
    waiting: dict[int, tuple[str, torch.Tensor]] = {}
    driver = greenlet.getcurrent()

    def stop_at(name: str) -> Any:
        def stop(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            if name in names:
                driver.switch((name, given[0]))

        return stop

    tensors = [{name: torch.from_numpy(value) for name, value in feed.items()} for feed in feeds]
    masks = [feed["attention_mask"].bool().reshape(-1) if "attention_mask" in feed else None for feed in tensors]
    runs = [_start(model, feed) for feed in tensors]
    last: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}

    def positions(layer: Layer, index: int) -> torch.Tensor:
        """The inputs at `layer`; the very tensor of the layer before where query, key and value share theirs."""
        given = waiting[index][1]
        if index in last and last[index][0] is given and last[index][1] == given._version:
            return last[index][2]
        made = layer.positions(given, masks[index])
        if not bool(torch.isfinite(made).all()):
            raise ModelError(f"pruning: the activations at {layer.name} are NaN or infinite on the calibration data")
        if layer.groups == 1 and made.shape[-1] == given.shape[-1]:
            last[index] = (given, given._version, made)
        else:
            last.pop(index, None)
        return made

    handles = [layer.module.register_forward_pre_hook(stop_at(layer.name)) for layer in layers]

    def go_on(index: int) -> None:
        found = runs[index].switch()
        if runs[index].dead:
            waiting.pop(index, None)
        else:
            waiting[index] = found

    try:
        with torch.no_grad():
            for index in range(len(runs)):
                go_on(index)
            while waiting:
                # Batches may take different ways (experts); the layer that comes first is due first.
                name = min((name for name, _ in waiting.values()), key=order.__getitem__)
                here = [index for index, (place, _) in waiting.items() if place == name]
                layer = names[name]
                progress(name, order[name], len(order))
                inputs = [positions(layer, index) for index in here]
                yield layer, inputs
                del names[name], inputs
                if not names:
                    return
                for index in here:
                    go_on(index)
    finally:
        for handle in handles:
            handle.remove()
        for run in runs:
            if run:
                run.throw()  # GreenletExit: the rest of the pass is left out
    raise ModelError(f"pruning: the calibration data never reaches {next(iter(names))}; exclude it")


def _start(model: Model, feed: dict[str, torch.Tensor]) -> Any:
    run = greenlet.greenlet(lambda: model.forward(feed))
    run.gr_context = contextvars.copy_context()  # what a forward pass says in context variables stays its own
    return run
