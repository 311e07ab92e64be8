"""Which positions of one axis of one tensor go, and for those that stay, why."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from edgeredux.passes.onnx.structure.facts import Flags

Causes: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"


class Cut:
    """`gone` only ever shrinks; `cause` numbers the reason why each position that stays has to stay."""

    def __init__(self, gone: Flags, cause: int) -> None:
        self.gone = gone.copy()
        self.cause = np.full(gone.shape, cause, np.int32)

    def only(self, allowed: Flags, cause: int | Causes) -> bool:
        """Let no position outside of `allowed` go; `cause` says why. Returns whether that changed anything."""
        lost = self.gone & ~allowed
        if not lost.any():
            return False
        self.gone &= allowed
        self.cause[lost] = cause if isinstance(cause, int) else cause[lost]
        return True

    @property
    def kept(self) -> Flags:
        """The positions that stay."""
        return ~self.gone

    @property
    def left(self) -> int:
        """How many positions stay."""
        return int(self.kept.sum())
