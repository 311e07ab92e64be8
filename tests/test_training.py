"""The training loop: masks that hold exactly, gradients that callbacks see, and a killed run that ends the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_bert, tiny_llama, tokens, two_heads

from edgeredux.errors import InternalError, ModelError
from edgeredux.seams import Feed
from edgeredux.training.batches import Batches
from edgeredux.training.callback import Callback, Run
from edgeredux.training.checkpoint import write_atomically
from edgeredux.training.loop import train
from edgeredux.training.masks import Masks
from edgeredux.training.schedule import share
from edgeredux.training.settings import Settings
from edgeredux.training.trainable import activations_recomputed, trainable


def net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def samples(count: int = 24) -> list[Feed]:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal((1, 6), np.float32)} for _ in range(count)]


def loss_of(module: torch.nn.Module) -> Any:
    def loss(feed: dict[str, torch.Tensor]) -> torch.Tensor:
        wanted = torch.stack([feed["x"].sum(1), feed["x"].square().sum(1)], 1)
        return (module(feed["x"]) - wanted).float().square().mean()

    return loss


class Swap(Callback):
    """Every second update half of the masked weights are let go and as many others, drawn at random, are masked."""

    name = "swap"

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.seen: list[tuple[int, ...]] = []

    def on_step(self, run: Run) -> None:
        self.seen.append(tuple((value == 0).sum().item() for value in run.weights.values()))
        assert not bool(run.weights["0.weight"][run.masks.zero["0.weight"]].any())
        if run.step % 2:
            size = run.masks.zero["0.weight"].numel()
            zero = torch.zeros(size, dtype=torch.bool)
            zero[torch.randperm(size, generator=self.generator)[: size // 2]] = True
            run.change_mask("0.weight", zero.view(8, 6))
            assert not bool(run.weights["0.weight"][zero.view(8, 6)].any())

    def state(self) -> dict[str, torch.Tensor]:
        return {"generator": self.generator.get_state()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        self.generator.set_state(state["generator"])


def half(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every second weight of the first layer."""
    zero = torch.zeros(48, dtype=torch.bool)
    zero[::2] = True
    return {"0.weight": zero.view(8, 6)}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_masks_hold_after_every_update(optimizer: Any, precision: Any, accumulate: int) -> None:
    module = net()
    weights = trainable(module, embeddings=False)
    swap = Swap()
    settings = Settings(
        12, 0.05, optimizer=optimizer, precision=precision, accumulate=accumulate, weight_decay=0.3, momentum=0.9
    )
    train(settings, weights, Batches(samples(), 4, 0), loss_of(module), zero=half(module), callbacks=[swap])
    assert [count[0] for count in swap.seen] == [24] * 12
    assert all(count[1:] == (0, 0, 0) for count in swap.seen)
    assert not bool(torch.signbit(weights["0.weight"][weights["0.weight"] == 0]).any())  # no -0.0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_weight_let_go_starts_without_momentum(optimizer: Any) -> None:
    module = net()
    weights = trainable(module, embeddings=False)

    class Close(Callback):
        def on_step(self, run: Run) -> None:
            zero = half(module)["0.weight"]
            states = [value for value in run.optimizer.state[run.weights["0.weight"]].values() if value is not None]
            states = [value for value in states if value.shape == zero.shape]
            assert len(states) == (2 if optimizer == "adamw" else 1)
            if run.step == 3:
                assert all(bool(value[zero].all()) for value in states)
                run.change_mask("0.weight", zero)
                assert not any(bool(value[zero].any()) for value in states)
            elif run.step == 5:
                assert not any(bool(value[zero].any()) for value in states)
                run.change_mask("0.weight", ~zero)
                assert not any(bool(value.any()) for value in states)

    settings = Settings(6, 0.05, optimizer=optimizer, clip=0)
    train(settings, weights, Batches(samples(), 4, 0), loss_of(module), callbacks=[Close()])
    assert not bool(weights["0.weight"].any())  # the last update masked one half, the other had not moved since


def test_callbacks_see_gradients_of_masked_weights() -> None:
    module = net()
    weights = trainable(module, embeddings=False)
    batches = Batches(samples(), 4, 0)
    seen: list[torch.Tensor] = []

    class Look(Callback):
        def on_gradients(self, run: Run) -> None:
            gradient = run.weights["0.weight"].grad
            assert gradient is not None
            seen.append(gradient.clone())

    other = net()
    with torch.no_grad():
        other[0].weight.masked_fill_(half(module)["0.weight"], 0.0)
    for number in range(2):
        (loss_of(other)({"x": torch.from_numpy(batches(number)["x"])}) / 2).backward()
    train(
        Settings(1, 0.01, accumulate=2),
        weights,
        batches,
        loss_of(module),
        zero=half(module),
        callbacks=[Look()],
    )
    assert torch.equal(seen[0], other[0].weight.grad)
    assert bool((seen[0][half(module)["0.weight"]] != 0).all())


def test_masked_gradients_do_not_count_when_clipping() -> None:
    """One SGD step with everything but a bias masked moves that bias by exactly lr * clip."""
    module = net()
    weights = {name: value for name, value in trainable(module, embeddings=False).items() if name != "2.weight"}
    everything = {name: torch.ones_like(value, dtype=torch.bool) for name, value in weights.items() if name != "2.bias"}
    before = module[2].bias.detach().clone()
    settings = Settings(1, 0.5, optimizer="sgd", momentum=0.0, warmup=0.0, clip=0.25, schedule="constant")
    train(settings, weights, Batches(samples(), 24, 0), loss_of(module), zero=everything)
    # 1e-5: clip_grad_norm_ divides by norm + 1e-6, and these are float32 numbers.
    assert float((module[2].bias.detach() - before).norm()) == pytest.approx(0.125, rel=1e-5)


def test_accumulation_is_one_large_batch() -> None:
    one, two = net(), net()
    data = samples(8)
    order = Batches(data, 8, 0).places(0)

    def small(number: int) -> Feed:
        return {"x": np.concatenate([data[place]["x"] for place in order[4 * number : 4 * number + 4]])}

    settings = {"steps": 1, "learning_rate": 0.1, "optimizer": "sgd", "clip": 0.0}
    train(Settings(**settings), trainable(one, embeddings=False), Batches(data, 8, 0), loss_of(one))
    train(Settings(**settings, accumulate=2), trainable(two, embeddings=False), small, loss_of(two))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # float32 sums in another order


def test_against_a_hand_written_loop() -> None:
    ours, theirs = net(), net()
    batches = Batches(samples(), 4, 0)
    train(Settings(10, 0.01, weight_decay=0.1), trainable(ours, embeddings=False), batches, loss_of(ours))
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 1 else (10 - step) / 9)
    for step in range(10):
        optimizer.zero_grad()
        loss_of(theirs)({"x": torch.from_numpy(batches(step)["x"])}).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_cosine_against_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
    for step in range(10, 100):
        assert share("cosine", step, 100, 0.1) == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        reference.step()
    assert [share("constant", step, 100, 0.04) for step in (0, 1, 2, 3, 4, 99)] == [0.25, 0.5, 0.75, 1, 1, 1]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_training import *
def progress(text, done, total):
    if done == 8:
        os.kill(os.getpid(), signal.SIGKILL)
module = net()
train(Settings(14, 0.02, checkpoint_every=3), trainable(module, embeddings=False), Batches(samples(), 4, 0),
      noisy(module), zero=half(module), callbacks=[Swap()], checkpoint=Path({path!r}), progress=progress)
"""


def noisy(module: torch.nn.Module) -> Any:
    """A loss that draws from torch's own generator, as dropout does."""

    def loss(feed: dict[str, torch.Tensor]) -> torch.Tensor:
        return loss_of(module)({"x": torch.nn.functional.dropout(feed["x"], 0.2)})

    return loss


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    script = KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    assert path.is_file()
    ended = []
    for where in (path, tmp_path / "fresh.safetensors"):
        module, swap = net(), Swap()
        settings = Settings(14, 0.02, checkpoint_every=3)
        history = train(
            settings,
            trainable(module, embeddings=False),
            Batches(samples(), 4, 0),
            noisy(module),
            zero=half(module),
            callbacks=[swap],
            checkpoint=where,
        )
        ended.append((history, [value.detach().numpy().tobytes() for value in module.parameters()], len(swap.seen)))
    assert ended[0][:2] == ended[1][:2]
    assert (ended[0][2], ended[1][2]) == (8, 14)  # the first really went on from step 6


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    module = net()

    def go(identity: str) -> None:
        train(
            Settings(4, 0.02, checkpoint_every=2),
            trainable(module, embeddings=False),
            Batches(samples(), 4, 0),
            loss_of(module),
            checkpoint=path,
            identity=identity,
        )

    go("a")
    with pytest.raises(ModelError, match="other settings"):
        go("b")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged"):
        go("a")
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    write_atomically(path, {"x": torch.zeros(1)}, {"identity": "a", "callbacks": "", "step": "2"})
    with pytest.raises(ModelError, match="other weights"):
        go("a")


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    module = net()
    with pytest.raises(ModelError, match="step 0; lower learning_rate"):
        train(
            Settings(4, 0.02),
            trainable(module, embeddings=False),
            Batches(samples(), 4, 0),
            lambda feed: loss_of(module)(feed) * float("nan"),
        )


def test_a_mask_of_another_shape_is_refused() -> None:
    weights = trainable(net(), embeddings=False)
    with pytest.raises(InternalError, match=r"shape \[8, 6\]"):
        Masks(weights, {"0.weight": torch.ones(6, 8, dtype=torch.bool)})
    with pytest.raises(InternalError, match="not trained"):
        Masks(weights, {"nothing": torch.ones(6, 8, dtype=torch.bool)})


def test_embedding_tables_are_left_out_unless_asked_for() -> None:
    module = tiny_bert().module
    assert not any("embeddings.word" in name for name in trainable(module, embeddings=False))
    assert any("embeddings.word" in name for name in trainable(module, embeddings=True))


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_recomputed_activations_give_the_same_gradients(make: Any) -> None:
    model = make()
    feed = {name: torch.from_numpy(value) for name, value in tokens(model, (2, 6))[0].items()}
    gradients, passes = [], []
    for wanted in (False, True):
        module = model.module
        module.zero_grad()
        calls = [0]

        def count(*_: Any, calls: list[int] = calls) -> None:
            calls[0] += 1

        linear = next(part for name, part in module.named_modules() if name.endswith(("intermediate.dense", "up_proj")))
        handle = linear.register_forward_pre_hook(count)
        with activations_recomputed(module, wanted):
            model.forward(feed)[model.output_names[0]].square().sum().backward()
        handle.remove()
        gradients.append([value.grad.clone() for value in module.parameters() if value.grad is not None])
        passes.append(calls[0])
        assert not any(part.training for part in module.modules())
    assert passes == [1, 2]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(ModelError, match="no transformers model"), activations_recomputed(two_heads().module, True):
        pass


def test_masks_hold_whatever_an_optimizer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that moves every weight, gradient or not: what callbacks see and what is left at the end is masked."""

    class Pusher(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for value in group["params"]:
                    value.add_(1.0)

    class Look(Callback):
        def on_step(self, run: Run) -> None:
            assert int((run.weights["0.weight"] == 0).sum()) == 24

    monkeypatch.setattr(Settings, "make_optimizer", lambda self, weights: Pusher(weights, lr=self.learning_rate))
    for callbacks in ([], [Look()]):
        module = net()
        weights = trainable(module, embeddings=False)
        train(
            Settings(2, 0.1),
            weights,
            Batches(samples(), 4, 0),
            loss_of(module),
            zero=half(module),
            callbacks=callbacks,
        )
        assert int((weights["0.weight"] == 0).sum()) == 24
