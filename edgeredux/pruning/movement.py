"""The step `movement`: weights that training moves towards zero go, while the model is trained (Sanh et al. 2020).

The score of a weight is S = -sum over updates of w * dL/dw (eq. 4 and 5): how far training has moved it away from zero.
Pruned weights keep the value they had, their scores go on moving with the gradient they would have, and they come back
with that value when their score rises: the forward pass sees W * M(S), the straight-through gradient reaches S.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass
from transformers.pytorch_utils import Conv1D

from edgeredux.artifact import Change
from edgeredux.batching import singles
from edgeredux.errors import ModelError
from edgeredux.model import Model
from edgeredux.pruning.allocation import Asked, globally, uniform
from edgeredux.pruning.layers import Layer, layers
from edgeredux.seams import ReduceContext
from edgeredux.sparsity.asked import check_zeros, known_pattern, zeros_asked
from edgeredux.sparsity.counts import count_of
from edgeredux.sparsity.patterns import Pattern, parse
from edgeredux.training.batches import Batches
from edgeredux.training.callback import Callback, Run
from edgeredux.training.loop import tenths
from edgeredux.training.losses import defaults
from edgeredux.training.losses import parse as parse_losses
from edgeredux.training.losses.term import Term
from edgeredux.training.objective import Objective
from edgeredux.training.options import TrainingOptions, start
from edgeredux.training.schedule import cubic
from edgeredux.training.trainable import hooks_restored, trainable


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Movement(TrainingOptions):
    """Train by `losses` (those of the step distill; {task: 1} fine-tunes) and set the share `zeros` to 0 meanwhile.

    The share rises as a cubic from the `begin` to the `end` share of the updates; the rest trains what is left. After
    every `every`-th update exactly floor(share * steps of the pattern) steps of each layer are zero (`allocation`
    uniform: top-v) or of all layers together (global); in n:m m - n of m go one after another. `penalty` adds
    penalty * sigmoid(S) to the loss of the scores, which grow at `score_rate`: the regulariser of soft movement
    pruning, whose threshold is set here so that the count is exact, where the paper leaves it free. Scores begin at
    prior * w^2, so that magnitude decides until movement has something to say: a model that is distilled from itself
    has no gradient at first, and scores that begin at 0, as the paper's do (`prior` 0), are noise then. `pattern` and
    `exclude` are those of the step prune. Other options: edgeredux/training/options.py. Resumable to the byte.
    """

    zeros: Annotated[float, Field(gt=0, lt=1)] | None = None
    pattern: str = "unstructured"
    allocation: Literal["uniform", "global"] = "uniform"
    begin: Annotated[float, Field(ge=0, lt=1)] = 0.1
    end: Annotated[float, Field(gt=0, le=1)] = 0.7
    every: Annotated[int, Field(ge=1)] = 1
    penalty: Annotated[float, Field(ge=0)] = 0.0
    score_rate: Annotated[float, Field(gt=0)] = 1.0
    prior: Annotated[float, Field(ge=0)] = 10.0
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    losses: dict[str, Annotated[float, Field(gt=0)] | dict[str, Any]] | None = None
    exclude: tuple[str, ...] = ()

    @field_validator("pattern")
    @classmethod
    def _pattern_is_known(cls, value: str) -> str:
        return known_pattern(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Movement:
        check_zeros(self.pattern, self.zeros, self.allocation)
        if self.begin >= self.end:
            raise ValueError(f"begin ({self.begin:g}) must come before end ({self.end:g})")
        return self

    @property
    def share(self) -> float:
        """The zeros asked for: 0.5 unless said."""
        return zeros_asked(self.pattern, self.zeros, 0.5)

    def check(self, model: Model) -> None:
        """Raise RecipeError or ModelError when a layer does not take the pattern or the task not the losses."""
        self.check_training(model, "movement")
        self._terms(model)
        pattern = parse(self.pattern)
        for layer in layers(model, self.exclude, "movement"):
            misfit = pattern.misfit(*layer.matrix().shape)
            if misfit is not None:
                raise ModelError(f"movement: pattern {self.pattern} does not fit {layer.name}: {misfit}; exclude it")

    def apply(self, model: Model, context: ReduceContext) -> tuple[Model, Change]:
        """The trained model with zeros; Change details hold weights, zeros by layer, first and last loss."""
        self.check(model)
        start(context, "movement")
        student = model.after(copy.deepcopy(model.module).eval(), repr(self))
        student.module.to(self.device)
        teacher = self.placed(context.teacher)
        chosen = layers(student, self.exclude, "movement")
        trained = trainable(student.module, embeddings=self.embeddings)
        frozen = [layer.name for layer in chosen if f"{layer.name}.weight" not in trained]
        if frozen:
            raise ModelError(f"movement: {frozen[0]} shares its weight with an embedding table: exclude it")
        scores = MovementScores(chosen, self)
        with hooks_restored(student.module, teacher.module):
            batches = Batches(singles(student, context.training), self.batch_size, context.seed)
            objective = Objective(
                self._terms(student),
                student,
                teacher,
                batches,
                temperature=self.temperature,
                seed=context.seed,
                where="movement",
            )
            history = self.fit(
                student,
                objective,
                batches,
                context,
                "movement",
                beside=objective.parameters,
                callbacks=[scores],
                exempt=scores.names,
            )
        zeros = {layer.name: int((layer.matrix() == 0).sum()) for layer in chosen}
        weights = sum(layer.matrix().numel() for layer in chosen)
        first, last = tenths(history)
        why = (
            f"{sum(zeros.values()):,} of {weights:,} weights in {len(zeros)} layers are zero "
            f"(movement, {self.pattern}, {self.allocation}); loss {first:.4f} to {last:.4f}"
        )
        details: dict[str, Any] = {"weights": weights, "zeros": sum(zeros.values()), "zeros_by_layer": zeros}
        details |= {"pattern": self.pattern, "loss_first": first, "loss_last": last, "steps": self.steps}
        return student, Change("movement", True, why, details)

    def _terms(self, model: Model) -> dict[str, Term]:
        return parse_losses(defaults(model) if self.losses is None else self.losses, model, "movement")


class MovementScores(Callback):
    """Scores and masks of the layers as training goes on, and the values that masked weights come back with."""

    name = "movement"

    def __init__(self, chosen: Sequence[Layer], said: Movement) -> None:
        self._layers = {f"{layer.name}.weight": layer for layer in chosen}
        self._said = said
        self._pattern: Pattern = parse(said.pattern)
        weights = {name: layer.module.get_parameter("weight").detach() for name, layer in self._layers.items()}
        self.scores = {name: said.prior * value.square() for name, value in weights.items()}
        self._stored = {name: torch.zeros_like(value) for name, value in weights.items()}  # 0 where a weight is kept

    @property
    def names(self) -> list[str]:
        """The masked parameters."""
        return list(self._layers)

    @torch.no_grad()
    def on_gradients(self, run: Run) -> None:
        """S <- S - rate * (w * dL/dw + penalty * sigmoid'(S)), w the weight as it would be without its mask."""
        for name, score in self.scores.items():
            weight = run.weights[name]
            assert weight.grad is not None
            slope = (weight + self._stored[name]) * weight.grad
            if self._said.penalty > 0:
                share = torch.sigmoid(score)
                slope = slope + self._said.penalty * share * (1 - share)
            score -= self._said.score_rate * slope
            if not bool(torch.isfinite(score).all()):
                raise ModelError(f"movement: the scores of {name} are NaN or infinite; lower learning_rate")

    @torch.no_grad()
    def on_step(self, run: Run) -> None:
        """New masks from the scores; weights let go have the value that they had when they were masked."""
        done, steps = run.step + 1, self._said.steps
        if done % self._said.every and done != steps:
            return
        begin, end = int(self._said.begin * steps), int(self._said.end * steps)
        removed = self._removed(cubic(done, begin, end, self._said.share))
        for name, layer in self._layers.items():
            weight = run.weights[name]
            whole = weight + self._stored[name]
            scores = Layer.as_matrix(layer.module, self.scores[name])
            gone = self._pattern.mask(scores, removed[name])
            zero = gone.T if isinstance(layer.module, Conv1D) else gone.view(weight.shape)
            run.change_mask(name, zero)
            weight.copy_(whole.masked_fill(zero, 0.0))
            self._stored[name] = whole.masked_fill(~zero, 0.0)

    def _removed(self, share: float) -> dict[str, int]:
        matrices = {name: Layer.as_matrix(layer.module, self.scores[name]) for name, layer in self._layers.items()}
        if self._pattern.window:
            return dict.fromkeys(matrices, count_of(share, self._pattern.window))
        everything = {name: Asked(len(value), value.shape[1], scores=value) for name, value in matrices.items()}
        way = globally if self._said.allocation == "global" else uniform
        return way(everything, self._pattern, share)

    def state(self) -> dict[str, torch.Tensor]:
        """Scores and stored values by parameter name."""
        both = {"score": self.scores, "stored": self._stored}
        return {f"{kind}:{name}": value for kind, values in both.items() for name, value in values.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave."""
        for full, value in state.items():
            kind, _, name = full.partition(":")
            into = self.scores if kind == "score" else self._stored
            into[name] = value.to(into[name].device)
