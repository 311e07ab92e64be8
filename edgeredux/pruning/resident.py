"""Which parts of a module on the meta device are in memory: those that are being run, read from the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgeredux.errors import ModelError
from edgeredux.model import Model
from edgeredux.pruning.checkpoint import DTYPES, Checkpoint


class Resident:
    """Puts tensors of `model` in memory as float32 and takes them out again.

    `blocks` are entered and left by whoever runs them. What stands outside is read when it is first called and stays;
    of embedding tables only the rows that a batch asks for are. A head after the last block is never called.
    """

    def __init__(self, model: Model, blocks: Sequence[str], checkpoint: Checkpoint) -> None:
        """Raises ModelError for tensors that the checkpoint lacks, or has in another shape or type."""
        self._module = model.module
        self._blocks = tuple(blocks)
        self._checkpoint = checkpoint
        self._prefix = str(getattr(model.module, "base_model_prefix", ""))
        self._handles: list[Any] = []
        tied = set(getattr(model.module, "all_tied_weights_keys", ()))  # by the class and its config
        self.stored: dict[str, str] = {}  # name in the module -> name in the checkpoint
        for name, value in model.module.state_dict().items():
            found = self._find(name)
            if found is not None:
                self._check(found, name, tuple(value.shape), value.is_floating_point())
                self.stored[name] = found
            elif name not in tied and not name.startswith("pooler."):  # a pooler that was never trained is never run
                raise ModelError(f"model {checkpoint.text}: weight {name!r} is not in the checkpoint")
        self._outside()

    def __enter__(self) -> Resident:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def tensors(self, block: str) -> list[str]:
        """Names of a block's tensors, as the module calls them."""
        return [name for name in self.stored if name.startswith(f"{block}.")]

    def enter(self, block: str) -> None:
        """Read a block's tensors. Raises ModelError for values that are NaN or infinite."""
        for name in self.tensors(block):
            self._put(name, self._real(name))

    def leave(self, block: str) -> None:
        """Forget a block's tensors."""
        for name in self.tensors(block):
            self._put(name, self._value(name).to("meta"))

    def value(self, name: str) -> torch.Tensor:
        """A tensor of the module as it is now."""
        return self._value(name).detach()

    def _find(self, name: str) -> str | None:
        """What the checkpoint calls it: heads are loaded from bare models and the other way round."""
        known = self._checkpoint.tensors
        bare = name.removeprefix(f"{self._prefix}.")
        return next((other for other in (name, f"{self._prefix}.{name}", bare) if other in known), None)

    def _check(self, found: str, name: str, shape: tuple[int, ...], floating: bool) -> None:
        stored = self._checkpoint.tensors[found]
        if stored.shape != shape:
            raise ModelError(
                f"model {self._checkpoint.text}: weight {name!r} has shape {list(stored.shape)}, config.json says "
                f"{list(shape)}"
            )
        if DTYPES[stored.dtype].is_floating_point != floating:
            raise ModelError(f"model {self._checkpoint.text}: weight {name!r} is of type {stored.dtype}, quantised")

    def _real(self, name: str) -> torch.Tensor:
        value = self._checkpoint.read(self.stored[name])
        return self._finite(name, value.float() if value.is_floating_point() else value)

    def _finite(self, name: str, value: torch.Tensor) -> torch.Tensor:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise ModelError(
                f"model {self._checkpoint.text}: weight {name!r} has {bad} values that are NaN or infinite"
            )
        return value

    def _value(self, name: str) -> torch.Tensor:
        owner, _, key = name.rpartition(".")
        found: torch.Tensor = getattr(self._module.get_submodule(owner), key)
        return found

    def _put(self, name: str, value: torch.Tensor) -> None:
        owner, _, key = name.rpartition(".")
        part = self._module.get_submodule(owner)
        setattr(part, key, nn.Parameter(value, requires_grad=False) if key in part._parameters else value)

    def _outside(self) -> None:
        """Hooks that read what stands outside the blocks when it is called."""
        for place, part in self._module.named_modules():
            if any(place == block or place.startswith(f"{block}.") for block in self._blocks):
                continue
            own = [f"{place}.{key}".lstrip(".") for key in part._parameters if part._parameters[key] is not None]
            own += [
                f"{place}.{key}".lstrip(".") for key in part._buffers if f"{place}.{key}".lstrip(".") in self.stored
            ]
            own = [name for name in own if name in self.stored]
            if isinstance(part, nn.Embedding) and own:
                self._handles.append(part.register_forward_pre_hook(self._rows(own[0]), with_kwargs=True))
                self._handles.append(part.register_forward_hook(self._forget(own[0])))
            elif own:
                self._handles.append(part.register_forward_pre_hook(self._first(own)))

    def _first(self, names: Sequence[str]) -> Any:
        todo = list(names)

        def read(*_: object) -> None:
            while todo:
                self._put(todo[-1], self._real(todo[-1]))
                todo.pop()

        return read

    def _rows(self, name: str) -> Any:
        stored = self.stored[name]
        size = self._checkpoint.tensors[stored].shape[0]

        def read(part: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            given = args[0] if args else options["input"]
            wanted, places = given.unique(return_inverse=True)
            if int(wanted[0]) < 0 or int(wanted[-1]) >= size:
                raise ModelError(
                    f"model {self._checkpoint.text}: the data asks {name!r} for row {int(wanted[-1])} of {size}; is "
                    "the tokenizer another model's?"
                )
            rows = self._checkpoint.rows(stored, wanted.tolist()).float()
            self._put(name, self._finite(name, rows))
            part.padding_idx = None  # only says where there is no gradient, and counts in the whole table
            return (places,), {}

        return read

    def _forget(self, name: str) -> Any:
        shape = self._checkpoint.tensors[self.stored[name]].shape

        def forget(*_: object) -> None:
            self._put(name, torch.empty(shape, device="meta"))

        return forget
