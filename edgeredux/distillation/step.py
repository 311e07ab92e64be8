"""Distillation from the dense model, resumable to the byte."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgeredux.artifact import Change
from edgeredux.batching import singles
from edgeredux.errors import RecipeError
from edgeredux.model import Model
from edgeredux.seams import Feed, ReduceContext
from edgeredux.training.batches import Batches
from edgeredux.training.generation import Generated, rewritten
from edgeredux.training.loop import tenths
from edgeredux.training.losses import defaults, parse
from edgeredux.training.losses.term import Term
from edgeredux.training.objective import Objective
from edgeredux.training.options import TrainingOptions, start
from edgeredux.training.settings import Precision
from edgeredux.training.teacher_cache import TeacherCache, describe
from edgeredux.training.trainable import hooks_restored
from edgeredux.training.verified import key_of

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class Sequences:
    """Texts that a language model writes itself, for a `share` of the batches (student) or samples (teacher).

    by: teacher    sequence-level distillation (Kim and Rush 2016): the teacher continues the data once, beforehand
    by: student    on-policy (GKD, Agarwal et al. 2024, algorithm 1): the student continues prompts with the weights it
                   has at that update, the teacher scores what it wrote; no gradient through the sampling

    A prompt is a sample's first `prompt_tokens` tokens; `new_tokens` are sampled at `temperature` (0: greedy).
    """

    by: Literal["student", "teacher"]
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    prompt_tokens: Annotated[int, Field(ge=1)] = 16
    new_tokens: Annotated[int, Field(ge=1, le=4096)] = 32
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0


@dataclass(frozen=True, config=_STRICT)
class Distill(TrainingOptions):
    """Train the reduced model to repeat the dense one on unlabelled data, by any weighted sum of losses.

    `losses` is {name: weight} or {name: {weight: 1.0, option: ...}} (edgeredux/training/losses); default: embedding and
    hidden for embeddings, logits and hidden for classifiers and language models, output for anything else, 1 each.
    `temperature` is that of every loss on probabilities that names none. `teacher_precision` bfloat16 halves the
    teacher's memory. `cache`: "" asks the teacher anew for every batch; "run" keeps its answers beside the checkpoint
    for this run alone, anything else is a folder that keeps them for later runs, too. Other options: options.py. A
    killed run goes on from its last checkpoint and ends with the same bytes as one that was not killed, on the same
    machine and thread count.
    """

    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    losses: dict[str, Annotated[float, Field(gt=0)] | dict[str, Any]] | None = None
    teacher_precision: Precision = "float32"
    cache: str = ""
    sequences: Sequences | None = None

    def check(self, model: Model) -> None:
        """Raise RecipeError for what the model's task does not have, EnvironmentProblem for an absent GPU."""
        terms = self._terms(model)
        self.check_training(model, "distill")
        causal = model.task == "causal-lm"
        if self.sequences is not None and not causal:
            raise RecipeError(f"distill: sequences needs a language model (task causal-lm); this one is {model.task}")
        if self.cache and self.sequences is not None and self.sequences.by == "student":
            raise RecipeError("distill: texts that the student writes are new each time: cache must be empty")
        full = [name for name, term in terms.items() if term.all_classes]
        if self.cache and causal and full:
            raise RecipeError(
                f"distill: loss {full[0]} needs a number per token of the vocabulary, too much to cache; use top_k"
            )
        if self.cache and not any(term.needs_teacher for term in terms.values()):
            raise RecipeError("distill: no loss looks at the teacher, so there is nothing to cache")

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The trained model; Change details hold first and last loss, and the samples the teacher answered for."""
        self.check(model)
        start(context, "distill")
        module = copy.deepcopy(model.module).eval()  # no dropout: the teacher has none either
        student = model.after(module, repr(self))
        module.to(self.device)
        teacher = self._teacher(context.teacher)
        with hooks_restored(module, teacher.module):
            batches = Batches(self._samples(student, teacher, context), self.batch_size, context.seed)
            objective = Objective(
                self._terms(student),
                student,
                teacher,
                batches,
                temperature=self.temperature,
                seed=context.seed,
                where="distill",
            )
            feeds, computed = self._feeds(objective, student, batches, context)
            history = self.fit(student, objective, feeds, context, "distil", beside=objective.parameters)
        first, last = tenths(history)
        why = f"{self.steps} steps, loss {first:.4f} to {last:.4f} (mean of the first and last tenth)"
        details: dict[str, Any] = {"loss_first": first, "loss_last": last, "steps": self.steps}
        if computed is not None:
            details["teacher_answers_computed"] = computed
        return student, Change("distill", True, why, details)

    def _terms(self, model: Model) -> dict[str, Term]:
        return parse(defaults(model) if self.losses is None else self.losses, model, "distill")

    def _teacher(self, dense: Model) -> Model:
        if self.teacher_precision == "float32" and self.device == "cpu":
            return dense
        kind = torch.bfloat16 if self.teacher_precision == "bfloat16" else torch.float32
        return replace(dense, module=copy.deepcopy(dense.module).to(device=self.device, dtype=kind))

    def _folder(self, context: ReduceContext) -> Path:
        return context.scratch / "teacher" if self.cache in ("", "run") else Path(self.cache).expanduser()

    def _samples(self, student: Model, teacher: Model, context: ReduceContext) -> list[Feed]:
        samples = singles(student, context.training)
        if self.sequences is None or self.sequences.by != "teacher":
            return samples
        return rewritten(
            teacher,
            samples,
            self._folder(context),
            share=self.sequences.share,
            prompt_tokens=self.sequences.prompt_tokens,
            new_tokens=self.sequences.new_tokens,
            temperature=self.sequences.temperature,
            seed=context.seed,
            batch_size=self.batch_size,
            progress=context.progress,
        )

    def _feeds(
        self, objective: Objective, student: Model, batches: Batches, context: ReduceContext
    ) -> tuple[Callable[[int], Feed], int | None]:
        if self.cache:
            half = self.teacher_precision == "bfloat16"
            key = key_of(describe(objective, self.teacher_precision), objective.teacher, batches.samples)
            cache = TeacherCache(self._folder(context), key, objective, batches, half=half)
            return cache, cache.fill(context.progress)
        if self.sequences is not None and self.sequences.by == "student":
            said = self.sequences
            return (
                Generated(
                    student,
                    batches,
                    share=said.share,
                    prompt_tokens=said.prompt_tokens,
                    new_tokens=said.new_tokens,
                    temperature=said.temperature,
                    seed=context.seed,
                ),
                None,
            )
        return batches, None
