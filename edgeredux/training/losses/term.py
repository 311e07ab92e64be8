"""What every loss is made of: options a recipe gives (a Term), and what it is for one student and teacher (a Part)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import field
from typing import Annotated, ClassVar, TypeAlias

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.model import Model
from edgeredux.training.answers import OUTPUTS, Answers, Needs

STRICT = ConfigDict(extra="forbid")
Tensors: TypeAlias = Mapping[str, torch.Tensor]
TOKEN_TASKS = ("embedding", "causal-lm")
ALL_TASKS = ("embedding", "classification", "causal-lm", "generic")


@plain(frozen=True)
class Part:
    """A loss bound to a student and a teacher.

    `digest(teacher's answers, feed)` keeps of the teacher what the loss compares with, batch first, then tokens where
    there are any; `value(student's answers, digest, feed)` is the scalar loss. Only a digest is cached on disk.
    """

    digest: Callable[[Answers, Tensors], dict[str, torch.Tensor]]
    value: Callable[[Answers, Tensors, Tensors], torch.Tensor]
    student: Needs = OUTPUTS
    teacher: Needs = OUTPUTS
    parameters: Mapping[str, torch.nn.Parameter] = field(default_factory=dict)  # trained beside the student


@plain(frozen=True)
class Pair:
    """The two models, and a look at both on real data.

    `look(student needs, teacher needs, count)` gives (student's answers, teacher's answers, feed) of `count` batches.
    """

    student: Model
    teacher: Model
    look: Callable[[Needs, Needs, int], Sequence[tuple[Answers, Answers, Tensors]]]
    temperature: float  # of losses that name none themselves
    seed: int
    where: str  # the step, for messages


@dataclass(frozen=True, config=STRICT)
class Term:
    """Options of one loss. `weight` is its factor in the sum."""

    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    needs_transformers: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    all_classes: ClassVar[bool] = False  # the teacher's digest holds one number per class, of a vocabulary per token

    weight: Annotated[float, Field(gt=0)] = 1.0

    def bind(self, pair: Pair) -> Part:
        """The loss for these two models. Raises RecipeError or ModelError when it cannot be had of them."""
        raise NotImplementedError
