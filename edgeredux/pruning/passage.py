"""The way of all calibration batches through the blocks of a model of which only a block or two is in memory.

A block is read when the first batch enters it; when the last one has left it, what they came out with is handed over
and the block is forgotten. Blocks that were finished in an earlier run are not run again: they give back what came out
of the last of them then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import greenlet
import torch

from edgeredux.errors import ModelError
from edgeredux.model import Model
from edgeredux.pruning.resident import Resident
from edgeredux.pruning.state import State


class Passage:
    """Hooks on the blocks; use as a context manager while the batches go through (walk.stops)."""

    def __init__(
        self,
        model: Model,
        blocks: Sequence[str],
        batches: int,
        resident: Resident,
        left: Callable[[int, State], None],
        *,
        done: int = 0,
        given: State | None = None,
    ) -> None:
        """`left(number, state)` is called when all batches have left a block, which is still in memory then.

        `done` blocks are finished, `given` is what came out of the last of them.
        """
        self._model, self._blocks, self._batches = model, blocks, batches
        self._resident, self._left = resident, left
        self._done, self._given = done, given
        self._numbers: dict[Any, int] = {}  # of a batch, by the greenlet that runs it
        self._entered = done
        self._out: dict[int, State] = {}  # of the blocks that are in memory
        self._handles: list[Any] = []

    def __enter__(self) -> Passage:
        for number, name in enumerate(self._blocks):
            block = self._model.module.get_submodule(name)
            if number < self._done:
                block.forward = self._stand_in
                continue
            self._handles.append(block.register_forward_pre_hook(self._enter(number)))
            self._handles.append(block.register_forward_hook(self._leave(number)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for name in self._blocks[: self._done]:
            del self._model.module.get_submodule(name).forward

    def finish(self) -> None:
        """Hand over the blocks whose end not all batches reach: the passes stop at the last prunable layer."""
        for number in sorted({*self._out, *range(self._entered, len(self._blocks))}):
            if number == self._entered:
                self._resident.enter(self._blocks[number])
                self._entered += 1
            self._hand_over(number, State())

    def _batch(self) -> int:
        return self._numbers.setdefault(greenlet.getcurrent(), len(self._numbers))

    def _stand_in(self, *_: object, **__: object) -> Any:
        assert self._given is not None
        values = self._given.batches[self._batch()]
        return values[0] if self._given.bare else values

    def _enter(self, number: int) -> Any:
        def enter(*_: object) -> None:
            batch = self._batch()
            if number == self._entered:
                self._resident.enter(self._blocks[number])
                self._out[number] = State()
                self._entered += 1
            elif number not in self._out or batch in self._out[number].batches:
                raise ModelError(
                    f"prune: {self._blocks[number]} is run out of its turn, so the model cannot be pruned block by "
                    "block; load it whole (edgeredux.prune)"
                )

        return enter

    def _leave(self, number: int) -> Any:
        def leave(_: object, __: object, came_out: Any) -> None:
            bare = isinstance(came_out, torch.Tensor)
            values = (came_out,) if bare else came_out
            if not isinstance(values, tuple) or not all(value is None or torch.is_tensor(value) for value in values):
                raise ModelError(
                    f"prune: {self._blocks[number]} gives no tensors, so the model cannot be pruned block by block; "
                    "load it whole (edgeredux.prune)"
                )
            state = State(bare, {**self._out[number].batches, self._batch(): values})
            self._out[number] = state
            if len(state.batches) == self._batches:
                self._hand_over(number, state)

        return leave

    def _hand_over(self, number: int, state: State) -> None:
        self._out.pop(number, None)
        self._left(number, state)
        self._resident.leave(self._blocks[number])
