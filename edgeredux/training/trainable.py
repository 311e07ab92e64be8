"""Which weights of a module are trained, and what training leaves on the module taken off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgeredux.errors import ModelError

_TRANSFORMERS_MARK = "_output_capturing_hooks_installed"


def trainable(module: torch.nn.Module, *, embeddings: bool) -> dict[str, torch.nn.Parameter]:
    """The parameters to train, by name; `requires_grad` is set on these and cleared on all others.

    Embedding tables are left out without `embeddings` (and with them an output layer that shares their weight).
    """
    tables = [part for part in module.modules() if isinstance(part, torch.nn.Embedding) and not embeddings]
    frozen = {id(value) for part in tables for value in part.parameters()}
    for value in module.parameters():
        value.requires_grad_(value.is_floating_point() and id(value) not in frozen)
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def matrices(module: torch.nn.Module) -> list[str]:
    """Names of the weights that pruning makes zeros in: of Linears, convolutions and GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, Conv1D)
    return [f"{name}.weight" if name else "weight" for name, part in module.named_modules() if isinstance(part, kinds)]


def finished(module: torch.nn.Module) -> None:
    """A module as steps hand it on: no gradients, every floating-point parameter free again, in eval mode."""
    module.zero_grad(set_to_none=True)
    for part in module.parameters():
        part.requires_grad_(part.is_floating_point())
    module.eval()


@contextmanager
def hooks_restored(*modules: torch.nn.Module) -> Iterator[None]:
    """Forward hooks that appear inside are removed at the end.

    transformers leaves its hidden-state hooks, local functions, on the modules: neither pickle nor export takes them.
    """
    parts = [part for module in modules for part in module.modules()]
    before = [set(part._forward_hooks) for part in parts]
    marked = [_TRANSFORMERS_MARK in vars(part) for part in parts]
    try:
        yield
    finally:
        for part, keys, mark in zip(parts, before, marked, strict=True):
            for key in set(part._forward_hooks) - keys:
                del part._forward_hooks[key]
            if not mark:
                vars(part).pop(_TRANSFORMERS_MARK, None)


@contextmanager
def activations_recomputed(module: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing in a transformers module: layers run again in the backward pass, activations are not kept.

    transformers does it only where a layer's own `training` flag is set; here it is set on those layers alone, so that
    dropout inside them stays off in a module in eval mode. Memory falls, time grows by about a forward pass; the
    gradients are the same.
    """
    if not wanted:
        yield
        return
    enable = getattr(module, "gradient_checkpointing_enable", None)
    if not callable(enable):
        raise ModelError(f"{type(module).__name__} is no transformers model: its activations cannot be recomputed")
    enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [part for part in module.modules() if getattr(part, "gradient_checkpointing", False)]
    before = [part.training for part in layers]
    for part in layers:
        part.training = True
    try:
        yield
    finally:
        for part, mode in zip(layers, before, strict=True):
            part.training = mode
        module.gradient_checkpointing_disable()  # type: ignore[operator]
