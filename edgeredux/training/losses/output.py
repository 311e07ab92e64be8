"""Outputs of any model: mean squared error."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch.nn import functional as F

from edgeredux.errors import ModelError
from edgeredux.training.answers import OUTPUTS, Answers
from edgeredux.training.losses.term import STRICT, Pair, Part, Tensors, Term


@dataclass(frozen=True, config=STRICT)
class Output(Term):
    """Mean squared error of each output, mean over outputs. The shapes must agree."""

    tasks: ClassVar[tuple[str, ...]] = ("generic",)

    def bind(self, pair: Pair) -> Part:
        """See Term."""
        names = pair.student.output_names
        student, teacher, _ = pair.look(OUTPUTS, OUTPUTS, 1)[0]
        for name in names:
            mine, theirs = student.outputs[name].shape, teacher.outputs[name].shape
            if mine != theirs:
                raise ModelError(f"{pair.where}: output {name!r} is {list(mine)}, the teacher's {list(theirs)}")

        def digest(seen: Answers, feed: Tensors) -> dict[str, torch.Tensor]:
            return {name: seen.outputs[name] for name in names}

        def value(seen: Answers, kept: Tensors, feed: Tensors) -> torch.Tensor:
            return torch.stack([F.mse_loss(seen.outputs[name], kept[name]) for name in names]).mean()

        return Part(digest, value)
