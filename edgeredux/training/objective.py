"""The weighted sum of losses that a student is trained by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from edgeredux.model import Model
from edgeredux.seams import Feed
from edgeredux.training.answers import OUTPUTS, Answers, Needs, answers
from edgeredux.training.losses.term import Pair, Part, Tensors, Term

PREFIX = "teacher:"  # feed entries "teacher:<loss>:<name>" hold a digest taken earlier


class Objective:
    """Call it with a batch of tensors: the scalar loss, gradients through the student alone.

    The teacher runs without gradients, in its own precision, unless the batch brings its digests.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        student: Model,
        teacher: Model,
        batches: Callable[[int], Feed],
        *,
        temperature: float = 2.0,
        seed: int = 0,
        where: str = "distill",
    ) -> None:
        """Looks at a few batches of both models where a loss needs their widths. Raises RecipeError, ModelError."""
        self.terms = terms
        self.student = student
        self.teacher = teacher
        self._device = next(student.module.parameters()).device
        self._batches = batches
        pair = Pair(student, teacher, self._look, temperature, seed, where)
        self.parts: dict[str, Part] = {name: term.bind(pair) for name, term in terms.items()}
        self.parameters = {
            f"{loss}.{name}": value for loss, part in self.parts.items() for name, value in part.parameters.items()
        }
        self._student_needs, self.teacher_needs = OUTPUTS, OUTPUTS
        for part in self.parts.values():
            self._student_needs |= part.student
            self.teacher_needs |= part.teacher
        self.needs_teacher = any(term.needs_teacher for term in terms.values())

    def _look(self, student: Needs, teacher: Needs, count: int) -> Sequence[tuple[Answers, Answers, Tensors]]:
        seen = []
        for number in range(count):
            feed = {name: torch.from_numpy(value).to(self._device) for name, value in self._batches(number).items()}
            with torch.no_grad():
                seen.append((answers(self.student, feed, student), answers(self.teacher, feed, teacher), feed))
        return seen

    def digest(self, feed: Tensors) -> dict[str, torch.Tensor]:
        """What the losses keep of the teacher's answers, by "<loss>:<name>"."""
        # Under the student's autocast as well the teacher computes in its own precision.
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            seen = answers(self.teacher, feed, self.teacher_needs)
            return {
                f"{loss}:{name}": value
                for loss, part in self.parts.items()
                for name, value in part.digest(seen, feed).items()
            }

    def __call__(self, feed: Tensors) -> torch.Tensor:
        """Sum of weight * loss."""
        kept = {name.removeprefix(PREFIX): value for name, value in feed.items() if name.startswith(PREFIX)}
        if self.needs_teacher and not kept:
            kept = self.digest(feed)
        seen = answers(self.student, feed, self._student_needs)
        total = torch.zeros((), device=self._device)
        for loss, part in self.parts.items():
            mine = {name.removeprefix(f"{loss}:"): value for name, value in kept.items() if name.startswith(f"{loss}:")}
            total = total + self.terms[loss].weight * part.value(seen, mine, feed)
        return total
