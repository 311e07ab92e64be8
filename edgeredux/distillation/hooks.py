"""Modules as they were: what a forward pass hung on them is taken off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TRANSFORMERS_MARK = "_output_capturing_hooks_installed"


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
