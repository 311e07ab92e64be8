"""Distillation: the paper's loss, zeros that stay, and a killed run that ends with the same bytes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_prune_structured import bert, context

from edgeredux.distillation.step import Distill
from edgeredux.errors import RecipeError
from edgeredux.pruning.structured import Structured
from edgeredux.training.losses import divergence as losses


def test_soft_labels_against_the_formula() -> None:
    student, teacher = np.array([[1.0, 2.0, 0.5]]), np.array([[0.1, 3.0, -1.0]])
    temperature = 2.0

    def softmax(values: np.ndarray) -> np.ndarray:
        grown = np.exp(values / temperature)
        return grown / grown.sum()

    wanted = -(softmax(teacher) * np.log(softmax(student))).sum() * temperature**2
    got = losses.soft_labels(torch.tensor(student), torch.tensor(teacher), temperature)
    assert float(got) == pytest.approx(wanted, rel=1e-12)


def test_distillation_brings_the_student_nearer_and_is_repeatable(tmp_path: Path) -> None:
    model = bert()
    reduced, _ = Structured(ffn=0.5, heads=0.5, repair="none").apply(model, context(model, tmp_path))
    step = Distill(steps=30, learning_rate=1e-3)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, change = step.apply(reduced, context(model, tmp_path / "a"))
    second, _ = step.apply(reduced, context(model, tmp_path / "b"))
    assert change.details["loss_last"] < change.details["loss_first"]
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_teacher_and_student_still_pickle(tmp_path: Path) -> None:
    model = bert()
    trained, _ = Distill(steps=2).apply(model, context(model, tmp_path))
    for each in (model, trained):
        again = pickle.loads(pickle.dumps(each.module))  # the exporters send it to a process of their own
        assert not any(part._forward_hooks for part in again.modules())
    Distill(steps=2).apply(trained, context(model, tmp_path))  # hidden states are found again


def test_zeros_stay_exact(tmp_path: Path) -> None:
    model = bert()
    weight = model.module.encoder.layer[0].intermediate.dense.weight
    with torch.no_grad():
        weight[::2] = 0
    step = Distill(steps=5, learning_rate=1e-2, weight_decay=0.1)
    trained, _ = step.apply(model, context(bert(), tmp_path))
    after = trained.module.encoder.layer[0].intermediate.dense.weight
    assert bool((after[::2] == 0).all())
    assert not torch.equal(after[1::2], weight[1::2])


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(RecipeError, match="embedding"):
        Distill(losses={"logits": 1.0}).check(bert())


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_prune_structured import bert, context
from edgeredux.distillation.step import Distill
import dataclasses
model = bert()
scratch = Path({scratch!r})
def progress(text, done, total):
    if done == 7:
        os.kill(os.getpid(), signal.SIGKILL)
Distill(steps=12, checkpoint_every=3, learning_rate=1e-3).apply(
    model, dataclasses.replace(context(bert(), scratch), progress=progress)
)
"""


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), scratch=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == -9
    assert (tmp_path / "checkpoint.safetensors").is_file()
    step = Distill(steps=12, checkpoint_every=3, learning_rate=1e-3)
    resumed, _ = step.apply(bert(), context(bert(), tmp_path))
    (tmp_path / "fresh").mkdir()
    whole, _ = step.apply(bert(), context(bert(), tmp_path / "fresh"))
    for a, b in zip(resumed.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(a, b)
