"""Movement pruning: the paper's score, exact counts after every update, weights that come back, a run that goes on."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distill_options import data, labelled, same, shaken
from tiny_models import tiny_bert, tiny_classifier, tiny_llama, two_heads

from edgeredux.errors import ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.layers import Layer, layers
from edgeredux.pruning.movement import Movement, MovementScores
from edgeredux.registry import create
from edgeredux.sparsity.patterns import parse
from edgeredux.training.callback import Run
from edgeredux.training.loop import train
from edgeredux.training.schedule import cubic
from edgeredux.training.settings import Settings
from edgeredux.training.trainable import trainable


class Watched(MovementScores):
    """Notes masks, scores and what is really zero after every update."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.counts: list[list[int]] = []
        self.masks: list[dict[str, torch.Tensor]] = []

    def on_step(self, run: Run) -> None:
        super().on_step(run)
        masks = {name: run.masks.zero.get(name, torch.zeros(1, dtype=torch.bool)).clone() for name in self.names}
        self.masks.append(masks)
        self.counts.append([int((run.weights[name] == 0).sum()) for name in self.names])


def plain() -> Model:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    return dataclasses.replace(two_heads(), module=module)


def run_of(said: Movement, steps: int = 20) -> tuple[torch.nn.Module, Watched]:
    model = plain()
    watched = Watched(layers(model), said)
    torch.manual_seed(1)
    x = torch.randn(64, 8)
    y = torch.randn(64, 4)

    def loss(feed: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = feed["rows"]
        return (model.module(x[rows]) - y[rows]).float().square().mean()

    import numpy as np

    train(
        Settings(steps, 0.02, weight_decay=0.1),
        trainable(model.module, embeddings=False),
        lambda number: {"rows": np.arange(8 * number, 8 * number + 8) % 64},
        loss,
        callbacks=[watched],
    )
    return model.module, watched


def test_against_a_hand_written_run_of_the_paper() -> None:
    """Masked weights kept beside in full, w and S updated by the formulas with plain SGD, top-v by sorting."""
    said = Movement(steps=6, zeros=0.5, begin=0.0, end=1.0, optimizer="sgd", momentum=0.0, prior=0.0)
    torch.manual_seed(0)
    weight = torch.randn(4, 6)
    x, y = torch.randn(3, 6), torch.randn(3, 4)
    module = torch.nn.Sequential(torch.nn.Linear(6, 4, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(weight)
    model = dataclasses.replace(two_heads(), module=module)
    ours = MovementScores(layers(model), said)
    settings = Settings(6, 0.1, optimizer="sgd", momentum=0.0, schedule="constant", warmup=0.0, clip=0.0)
    feed = {"x": x.numpy()}
    train(
        settings,
        trainable(module, embeddings=False),
        lambda number: feed,
        lambda given: (module(given["x"]) - y).square().sum(),
        callbacks=[ours],
    )
    full, score, mask = weight.clone(), torch.zeros(4, 6), torch.ones(4, 6)
    for step in range(6):
        gradient = 2 * ((x @ (full * mask).T) - y).T @ x  # dL / dW', W' = W * M
        score = score - gradient * full
        full = full - 0.1 * gradient * mask
        zeros = math.floor(0.5 * (1 - (1 - (step + 1) / 6) ** 3) * 24)
        order = score.flatten().argsort()
        mask = torch.ones(24)
        mask[order[:zeros]] = 0
        mask = mask.view(4, 6)
    torch.testing.assert_close(ours.scores["0.weight"], score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module[0].weight.detach(), full * mask, rtol=1e-4, atol=1e-5)
    assert int((module[0].weight == 0).sum()) == 12


@pytest.mark.parametrize(
    ("pattern", "zeros"), [("unstructured", 0.6), ("2:4", None), ("1x4", 0.5), ("2x2", 0.3), ("tile:2x4", 0.5)]
)
def test_every_pattern_is_exact_after_every_update(pattern: str, zeros: float | None) -> None:
    said = Movement(steps=20, zeros=zeros, pattern=pattern, begin=0.2, end=0.7)
    module, watched = run_of(said)
    shape = parse(pattern)
    for place, name in enumerate(watched.names):
        weight = module.get_parameter(name)
        rows, columns = weight.shape
        unit = rows * columns // shape.steps(rows, columns)
        share = said.share
        for step, counts in enumerate(watched.counts):
            steps = math.floor(cubic(step + 1, 4, 14, share) * shape.steps(rows, columns))
            assert counts[place] == steps * unit, (name, step)
        assert counts[place] == shape.removed(rows, columns, share) * unit
        assert shape.violation(weight.detach()) is None
    assert all(counts == [0, 0] for counts in watched.counts[:4])


def test_masked_weights_come_back_with_the_value_they_had() -> None:
    module, watched = run_of(Movement(steps=40, zeros=0.5, begin=0.0, end=0.3), steps=40)
    back = sum(
        int((old[name] & ~new[name]).sum())
        for old, new in zip(watched.masks, watched.masks[1:], strict=False)
        for name in watched.names
    )
    assert back > 0
    stored = watched.state()["stored:0.weight"]
    assert int((stored != 0).sum()) == int((module[0].weight == 0).sum()) == 32
    assert not bool((stored != 0)[module[0].weight != 0].any())


def test_global_counts_are_exact_in_all() -> None:
    _, watched = run_of(Movement(steps=20, zeros=0.5, allocation="global", begin=0.0, end=0.5, penalty=0.01))
    assert sum(watched.counts[-1]) == (64 + 32) // 2
    for step, counts in enumerate(watched.counts):
        assert sum(counts) == math.floor(cubic(step + 1, 0, 10, 0.5) * 96)
    together = torch.cat([watched.scores[name].flatten() for name in watched.names])
    smallest = torch.zeros(96, dtype=torch.bool)
    smallest[together.argsort()[:48]] = True
    assert torch.equal(torch.cat([watched.masks[-1][name].flatten() for name in watched.names]), smallest)


def test_a_model_distilled_from_itself_is_pruned_by_magnitude_until_scores_say_otherwise() -> None:
    """Without a gradient the masks are those of magnitude; the paper's scores would remove by place."""
    model = plain()
    wanted = {
        f"{layer.name}.weight": parse("unstructured").mask(layer.matrix().square(), layer.matrix().numel() // 2)
        for layer in layers(model)
    }
    for prior, agree in ((10.0, True), (0.0, False)):
        model = plain()
        scores = Watched(layers(model), Movement(steps=3, zeros=0.5, begin=0.0, prior=prior))
        train(
            Settings(3, 1e-9),
            trainable(model.module, embeddings=False),
            lambda number: {"x": torch.ones(1, 8).numpy()},
            lambda feed, module=model.module: module(feed["x"]).sum() * 0,  # type: ignore[misc]
            callbacks=[scores],
        )
        assert all(torch.equal(scores.masks[-1][name], mask) for name, mask in wanted.items()) is agree


def test_masks_may_change_every_few_updates() -> None:
    _, watched = run_of(Movement(steps=20, zeros=0.5, begin=0.0, end=0.9, every=7))
    changed = [
        step
        for step, (old, new) in enumerate(zip(watched.masks, watched.masks[1:], strict=False), 1)
        if any(not torch.equal(old[name], new[name]) for name in watched.names)
    ]
    assert set(changed) <= {6, 13, 19}
    assert watched.counts[-1] == [32, 16]


def test_the_penalty_pulls_scores_down() -> None:
    _, free = run_of(Movement(steps=10, zeros=0.5))
    _, held = run_of(Movement(steps=10, zeros=0.5, penalty=0.5))
    for name in free.names:
        assert float((free.scores[name] - held.scores[name]).min()) > 0.5 * 0.1 * 10  # 10 times 0.5 * sigmoid'(S), near


@pytest.mark.parametrize(("make", "losses"), [(tiny_bert, None), (tiny_llama, {"jsd": 1.0}), (tiny_classifier, None)])
def test_the_step_on_transformers(make: Any, losses: Any, tmp_path: Path) -> None:
    model = shaken(make())
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    step = Movement(steps=10, zeros=0.7, losses=losses, learning_rate=1e-3, weight_decay=0.1, precision="bfloat16")
    pruned, change = step.apply(model, data(make(), tmp_path))
    for layer in layers(pruned):
        weight = layer.matrix()
        assert int((weight == 0).sum()) == math.floor(0.7 * weight.numel())
    assert change.details["zeros"] == sum(change.details["zeros_by_layer"].values())
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert not any(value.requires_grad is False for value in pruned.module.parameters())


def test_gpt2s_matrices_are_transposed(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    def make() -> Model:
        torch.manual_seed(0)
        config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=16, eos_token_id=2)
        return tiny_llama().after(GPT2LMHeadModel(config).eval(), "")

    step = Movement(steps=6, pattern="2:4", losses={"forward_kl": 1.0})
    pruned, _ = step.apply(shaken(make()), data(make(), tmp_path))
    for layer in layers(pruned):
        assert parse("2:4").violation(layer.matrix()) is None
        assert int((layer.matrix() == 0).sum()) == layer.matrix().numel() // 2
    projection = pruned.module.transformer.h[0].attn.c_proj  # square: transposed or not cannot be told from its shape
    assert Layer("c_proj", projection).matrix().shape == (16, 16)


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(text: str, done: float, total: float) -> None:
        if text.startswith("movement") and done == 8:
            raise Stop

    step = Movement(steps=12, zeros=0.6, losses={"task": 1.0}, checkpoint_every=3, learning_rate=1e-3)
    given = labelled(tiny_classifier(), tmp_path / "a")
    with pytest.raises(Stop):
        step.apply(tiny_classifier(), dataclasses.replace(given, progress=stop))
    assert (tmp_path / "a" / "checkpoint.safetensors").is_file()
    resumed, _ = step.apply(tiny_classifier(), given)
    whole, _ = step.apply(tiny_classifier(), labelled(tiny_classifier(), tmp_path / "b"))
    assert same(resumed, whole)


def test_fine_tuning_by_movement_beats_magnitude_where_signs_matter(tmp_path: Path) -> None:
    """Large weights that training shrinks go, small ones that it grows stay: the figure of the paper's section 3."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        module[0].weight[0, :4] = 1.0  # large, and useless to the task
        module[0].weight[0, 4:] = 0.1  # small, and wanted at 1
    model = dataclasses.replace(two_heads(), module=module)
    scores = MovementScores(layers(model), Movement(steps=200, zeros=0.5, begin=0.2, prior=0.0))
    x = torch.randn(256, 8)
    train(
        Settings(200, 0.02, clip=0.0),
        trainable(module, embeddings=False),
        lambda number: {"x": x.numpy()},
        lambda feed: (module(feed["x"])[:, 0] - feed["x"][:, 4:].sum(1)).square().mean(),
        callbacks=[scores],
    )
    assert (module[0].weight[0] != 0).tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"zeros": 1.0}, "zeros"),
        ({"pattern": "3:2"}, "0 < n < m"),
        ({"pattern": "2:4", "zeros": 0.75}, "has 0.5 zeros"),
        ({"pattern": "2:4", "allocation": "global"}, "allocation: uniform"),
        ({"begin": 0.8}, "begin .0.8. must come before end"),
        ({"sparsity": 0.5}, "unknown option 'sparsity'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        create("reduce step", "movement", options, "test")


def test_what_does_not_fit_the_model_is_said_before_any_work() -> None:
    with pytest.raises(ModelError, match=r"pattern 5:7 does not fit .*exclude it"):
        Movement(pattern="5:7").check(tiny_bert())
    with pytest.raises(RecipeError, match="unknown loss 'task'"):
        Movement(losses={"task": 1.0}).check(tiny_bert())
    with pytest.raises(RecipeError, match="matches no layer"):
        Movement(exclude=("nothing",)).check(tiny_bert())
