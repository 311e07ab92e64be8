"""Static sparse training: a mask that never changes, the baseline of Mocanu et al. 2018 and Evci et al. 2020."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass

from edgeredux.sparse_training.masked import Masked
from edgeredux.sparse_training.step import STRICT


@dataclass(frozen=True, config=STRICT)
class Static(Masked):
    """Train under a fixed mask with exactly floor(zeros * weights) zeros."""

    name: ClassVar[str] = "static"
