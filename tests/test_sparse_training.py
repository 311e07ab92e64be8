"""Sparse training: the papers' formulas on cases small enough to read, and counts that are exact after every update."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import images, tiny_bert, tiny_classifier, tiny_llama, tokens, two_heads
from torch.nn import functional as F

from edgeredux.errors import ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.registry import create
from edgeredux.seams import Feed, ReduceContext
from edgeredux.sparse_training import TABLE
from edgeredux.sparse_training.allocation import zeros_by_layer
from edgeredux.sparse_training.gradual import Gradual
from edgeredux.sparse_training.group_lasso import GroupLasso
from edgeredux.sparse_training.l1 import L1
from edgeredux.sparse_training.proximal import group_threshold, soft_threshold
from edgeredux.sparse_training.rigl import Rigl
from edgeredux.sparse_training.set import Set
from edgeredux.sparse_training.static import Static
from edgeredux.sparse_training.step import SparseTraining
from edgeredux.sparse_training.topology import cosine_share, magnitude_mask, random_mask, replaced
from edgeredux.sparse_training.weights import sparse_weights
from edgeredux.sparsity.patterns import parse
from edgeredux.training.callback import Callback, Run
from edgeredux.training.loop import train
from edgeredux.training.schedule import cubic
from edgeredux.training.trainable import trainable

MASKED = ("static", "set", "rigl")


class Net(torch.nn.Module):
    """Convolution, grouped convolution, batch normalisation, two Linears: 288 + 144 + 1,024 + 160 = 1,616 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(2, 16, 3, stride=2, padding=1)
        self.second = torch.nn.Conv2d(16, 8, 3, groups=8, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.third = torch.nn.Linear(32, 32)
        self.last = torch.nn.Linear(32, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = self.norm(self.second(self.first(image).relu())).relu().flatten(1)
        return self.last(self.third(image).relu())


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(number: int) -> Feed:
    random = np.random.default_rng(number)
    return {"x": random.standard_normal((8, 2, 8, 8), np.float32), "y": random.integers(0, 5, 8)}


def loss_of(module: torch.nn.Module) -> Any:
    return lambda feed: F.cross_entropy(module(feed["x"]).float(), feed["y"])


class Watch(Callback):
    """Keeps the masked counts and the zero counts after every update, and every mask."""

    name = "watch"

    def __init__(self) -> None:
        self.masked: list[dict[str, int]] = []
        self.zero: list[dict[str, int]] = []
        self.masks: list[dict[str, torch.Tensor]] = []

    def on_step(self, run: Run) -> None:
        self.masked.append({name: int(mask.sum()) for name, mask in run.masks.zero.items()})
        self.zero.append({name: int((run.weights[name] == 0).sum()) for name in run.masks.zero})
        self.masks.append({name: mask.clone() for name, mask in run.masks.zero.items()})
        for name, mask in run.masks.zero.items():
            held = run.weights[name][mask]
            assert not bool(held.any())
            assert not bool(torch.signbit(held).any())


def trained(step: SparseTraining, module: torch.nn.Module, watch: Sequence[Callback] = ()) -> list[float]:
    """The loop as the step runs it, with an onlooker behind the step's own callbacks."""
    plan = step.plan(step.chosen(module, False), 3)
    module.train()
    return train(
        step.settings(),
        trainable(module, embeddings=True),
        batch,
        loss_of(module),
        zero=plan.zero,
        callbacks=[*plan.callbacks, *watch],
    )


# Allocation


def test_erk_against_the_papers_formula() -> None:
    """Evci et al. 2020: 1 - s = eps * (n_in + n_out + w + h) / (n_in * n_out * w * h), one eps for all layers."""
    shapes = {"a": (64, 32, 3, 3), "b": (128, 64, 3, 3), "c": (256, 512)}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    zeros = zeros_by_layer(shapes, 0.9, "erk")
    epsilon = (sum(sizes.values()) - int(0.9 * sum(sizes.values()))) / sum(sum(shape) for shape in shapes.values())
    for name, shape in shapes.items():
        assert sizes[name] - zeros[name] == pytest.approx(epsilon * sum(shape), abs=1)  # whole weights
    assert sum(zeros.values()) == int(0.9 * sum(sizes.values()))


def test_erk_leaves_small_layers_dense_and_the_total_exact() -> None:
    """Layer b: 2 + 2 = 4 of 4 weights at eps = 1. At half density eps > 1, so b is full and a gives the rest."""
    assert zeros_by_layer({"a": (20, 20), "b": (2, 2)}, 0.5, "erk") == {"a": 202, "b": 0}


def test_uniform_totals_are_exact_where_layers_do_not_divide() -> None:
    """10 % of 3 x 7 = 21 weights are 2 to keep of 21 - floor(18.9) = 3: one in each."""
    assert zeros_by_layer({"a": (7, 1), "b": (7, 1), "c": (1, 7)}, 0.9, "uniform") == {"a": 6, "b": 6, "c": 6}
    assert zeros_by_layer({"a": (10, 10), "b": (5, 3)}, 0.29, "uniform") == {"a": 29, "b": 4}


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
@pytest.mark.parametrize("zeros", [0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
def test_the_total_is_exact(allocation: Any, zeros: float) -> None:
    shapes = {"a": (6, 1, 5, 5), "b": (16, 6, 5, 5), "c": (120, 400), "d": (84, 120), "e": (10, 84)}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    found = zeros_by_layer(shapes, zeros, allocation)
    assert sum(found.values()) == round(zeros * 100) * sum(sizes.values()) // 100
    assert all(0 <= found[name] < sizes[name] for name in shapes)


def test_a_layer_that_would_keep_nothing_is_named() -> None:
    with pytest.raises(RecipeError, match=r"layer b would keep none of its 4 weights at zeros 0\.99"):
        zeros_by_layer({"a": (100, 10), "b": (2, 2)}, 0.99, "uniform")


# Masks that move


def test_replaced_on_a_case_to_read() -> None:
    """There: 4, -1, 3, 0.5. Two go: 0.5 and -1. Two come of five absent ones: the largest growths are 9 and 8."""
    weight = torch.tensor([[4.0, 0.0, -1.0], [0.0, 3.0, 0.0], [0.5, 0.0, 0.0]])
    zero = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=torch.bool)
    growth = torch.tensor([[99.0, 1.0, 2.0], [9.0, 99.0, 0.0], [3.0, 8.0, 7.0]])
    wanted = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 0, 1]], dtype=torch.bool)
    assert torch.equal(replaced(weight, zero, 2, growth), wanted)


def test_a_dropped_weight_may_come_back_and_ties_go_by_index() -> None:
    weight = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    zero = torch.tensor([[False, False, False, True]])
    back = torch.tensor([[5.0, 0.0, 0.0, 1.0]])
    assert torch.equal(replaced(weight, zero, 1, back), zero)  # the first of three equal ones went, and came back
    level = torch.zeros(1, 4)
    assert torch.equal(replaced(weight, zero, 2, level), torch.tensor([[False, False, False, True]]))


def test_growth_without_order_is_refused() -> None:
    weight, zero = torch.ones(1, 4), torch.tensor([[False, False, True, True]])
    with pytest.raises(ModelError, match="not finite"):
        replaced(weight, zero, 1, torch.full((1, 4), float("nan")))


def test_cosine_share_at_its_ends_and_middle() -> None:
    assert cosine_share(0, 0.3, 100) == 0.3
    assert cosine_share(50, 0.3, 100) == pytest.approx(0.15)
    assert cosine_share(100, 0.3, 100) == 0


def test_masks_of_an_exact_count() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (random_mask(torch.Size([5, 7]), 12, generator) for _ in range(2))
    assert int(first.sum()) == int(second.sum()) == 12
    assert not torch.equal(first, second)
    assert magnitude_mask(torch.tensor([[3.0, -1.0], [1.0, -2.0]]), 2).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", MASKED)
def test_counts_hold_after_every_update(method: str, optimizer: str, precision: str) -> None:
    more = {} if method == "static" else {"update_every": 4}
    options = {"zeros": 0.8, "steps": 40, "optimizer": optimizer, "precision": precision, "weight_decay": 0.1}
    step = create("reduce step", method, {**options, "accumulate": 2, "learning_rate": 0.01, **more}, "test")
    module, watch = net(), Watch()
    trained(step, module, [watch])
    counts = zeros_by_layer({w.name: w.value.shape for w in step.chosen(module, False)}, 0.8, "erk")
    assert sum(counts.values()) == 4 * sum(w.value.numel() for w in step.chosen(module, False)) // 5
    assert watch.masked == [counts] * 40
    moved = [
        step
        for step in range(1, 40)
        if any(not torch.equal(a, watch.masks[step - 1][n]) for n, a in watch.masks[step].items())
    ]
    # Every 4 until 75 % of 40, never at 0; at 28 the share is 0.3 %, which is no whole weight of any layer.
    assert moved == ([] if method == "static" else [4, 8, 12, 16, 20, 24])


def test_rigl_grows_the_largest_dense_gradients_from_zero() -> None:
    """One update by hand: the same gradients by autograd, the same rule in NumPy."""
    step = Rigl(zeros=0.5, steps=100, update_every=1, drop=0.5, optimizer="sgd", learning_rate=0.1, clip=0)
    module = net()
    plan = step.plan(step.chosen(module, False), 3)
    seen: dict[str, Any] = {}

    class Before(Callback):
        name = "before"

        def on_gradients(self, run: Run) -> None:
            if run.step == 1:
                seen["weight"] = run.weights["third.weight"].detach().clone().numpy()
                seen["zero"] = run.masks.zero["third.weight"].clone().numpy()
                seen["gradient"] = run.weights["third.weight"].grad.clone().numpy()  # type: ignore[union-attr]

    class After(Callback):
        name = "after"

        def on_gradients(self, run: Run) -> None:
            if run.step == 1:
                seen["new"] = run.masks.zero["third.weight"].clone().numpy()
                seen["start"] = run.weights["third.weight"].detach().clone().numpy()

    module.train()
    settings = dataclasses.replace(step.settings(), steps=2)
    callbacks = [Before(), *plan.callbacks, After()]
    train(settings, trainable(module, embeddings=True), batch, loss_of(module), zero=plan.zero, callbacks=callbacks)
    weight, zero, gradient = seen["weight"].ravel(), seen["zero"].ravel(), np.abs(seen["gradient"].ravel())
    there = np.flatnonzero(~zero)
    count = int(0.5 / 2 * (1 + math.cos(math.pi * 1 / 75)) * len(there))
    gone = there[np.argsort(np.abs(weight[there]), kind="stable")[:count]]
    absent = np.union1d(np.flatnonzero(zero), gone)
    grown = absent[np.argsort(-gradient[absent], kind="stable")[:count]]
    wanted = np.ones_like(zero)
    wanted[np.setdiff1d(there, gone)] = False
    wanted[grown] = False
    assert (gradient[zero] > 0).any()
    assert np.array_equal(seen["new"].ravel(), wanted)
    fresh = zero & ~wanted
    assert fresh.any()
    assert not seen["start"].ravel()[fresh].any()


def test_set_draws_by_seed_and_step() -> None:
    step = Set(zeros=0.8, steps=20, update_every=3, learning_rate=0.01)
    masks = []
    for _ in range(2):
        watch = Watch()
        trained(step, net(), [watch])
        masks.append(watch.masks[-1])
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_magnitude_start_keeps_the_largest() -> None:
    module = net()
    plan = Static(zeros=0.5, start="magnitude", allocation="uniform").plan(sparse_weights(module, False, (), "test"), 0)
    for name, zero in plan.zero.items():
        weight = module.get_parameter(name).detach().abs()
        assert float(weight[zero].max()) <= float(weight[~zero].min())


# Penalties


def test_soft_threshold_against_the_definition() -> None:
    """Minimiser of (v - w)^2 / 2 + t |v|, found by trying all v on a grid."""
    grid = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    for value in (-2.0, -0.5, -0.1, 0.0, 0.3, 0.5, 1.7):
        best = grid[((grid - value).square() / 2 + 0.5 * grid.abs()).argmin()]
        assert float(soft_threshold(torch.tensor([value]), 0.5)) == pytest.approx(float(best), abs=1e-3)  # the grid
    assert not bool(torch.signbit(soft_threshold(torch.tensor([-0.2, -0.5, 0.2, 0.5]), 0.5)).any())


def test_group_threshold_on_a_case_to_read() -> None:
    """Rows (3, 4) of norm 5 and (0.3, 0.4) of norm 0.5; t = 1 / sqrt(2), so t * sqrt(2) = 1: times 4/5, and gone."""
    rows = group_threshold(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1, 2, 1 / math.sqrt(2))
    torch.testing.assert_close(rows, torch.tensor([[2.4, 3.2], [0.0, 0.0]]))
    assert rows[1].tolist() == [0.0, 0.0]


def test_groups_of_one_are_l1() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4)
    torch.testing.assert_close(group_threshold(weight, 1, 1, 0.4), soft_threshold(weight, 0.4))


def test_l1_against_a_hand_written_proximal_gradient() -> None:
    """SGD without momentum on a constant learning rate is ISTA."""
    step = L1(strength=0.2, settle=0, steps=15, learning_rate=0.05, optimizer="sgd", momentum=0, schedule="constant",
              warmup=0, clip=0, exclude=("first", "second"))  # fmt: skip
    ours, theirs = net(), net().train()
    trained(step, ours)
    for number in range(15):
        theirs.zero_grad()
        loss_of(theirs)({name: torch.from_numpy(value) for name, value in batch(number).items()}).backward()
        with torch.no_grad():
            for value in theirs.parameters():
                value -= 0.05 * value.grad
            for value in (theirs.third.weight, theirs.last.weight):
                value.copy_(value.sign() * (value.abs() - 0.05 * 0.2).clamp_min(0))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # float32, sums in another order
    assert int((ours.third.weight == 0).sum()) > 50
    assert int((ours.first.weight == 0).sum()) == 0


def test_l1_zeros_are_fixed_at_the_end_and_the_rest_recovers() -> None:
    watch = Watch()
    trained(L1(strength=0.5, settle=0.5, steps=60, learning_rate=0.02), net(), [watch])
    assert watch.masked[28] == {}
    assert watch.masked[29] == watch.zero[29] == watch.masked[-1]
    assert sum(watch.masked[-1].values()) > 100


@pytest.mark.parametrize(("groups", "axes"), [("outputs", (1, 2, 3)), ("inputs", (0, 2, 3))])
def test_group_lasso_removes_whole_channels(groups: str, axes: tuple[int, ...]) -> None:
    module = net()
    step = GroupLasso(strength=0.3, groups=groups, settle=0.25, steps=60, learning_rate=0.02)
    trained(step, module)
    for value in (module.first.weight, module.second.weight, module.third.weight):
        zero = value == 0
        whole = zero.all(dim=axes[: value.dim() - 1], keepdim=True)
        assert torch.equal(zero, whole.expand_as(zero))  # no zero but in a group that is all zero
    assert bool((module.third.weight == 0).any())
    assert not bool((module.third.weight == 0).all())


def test_group_lasso_removes_whole_blocks() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 12), torch.nn.Tanh(), torch.nn.Linear(12, 5))
    trained(GroupLasso(strength=0.4, groups="4x4", settle=0, steps=60, learning_rate=0.02, exclude=("3",)), module)
    zero = (module[1].weight == 0).view(3, 4, 32, 4)
    assert 0 < int(zero[:, 0, :, 0].sum()) < 96
    assert torch.equal(zero, zero[:, :1, :, :1].expand_as(zero))


# Gradual


def test_cubic_against_zhu_and_gupta() -> None:
    """Eq. 1 with s_i = 0, s_f = 0.8, t_0 = 10, n * dt = 4 * 5: s at every update, then s_f."""
    found = [cubic(step, 10, 30, 0.8) for step in (10, 15, 20, 25, 30, 99)]
    assert found == pytest.approx([0, 0.8 - 0.8 * 0.75**3, 0.8 - 0.8 * 0.5**3, 0.8 - 0.8 * 0.25**3, 0.8, 0.8])


@pytest.mark.parametrize(
    ("pattern", "zeros"), [("unstructured", 0.83), ("2:4", None), ("1:6", None), ("2x2", 0.7), ("tile:2x2", 0.75)]
)
def test_gradual_ends_with_the_exact_count_in_any_pattern(pattern: str, zeros: float | None) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 12), torch.nn.ReLU(), torch.nn.Linear(12, 6))
    step = Gradual(
        zeros=zeros,
        pattern=pattern,
        steps=40,
        update_every=4,
        learning_rate=0.01,
        exclude=("1",) if zeros is None else (),
    )
    watch = Watch()
    trained(step, module, [watch])
    chosen = step.chosen(module, False)
    final = parse(pattern)
    for weight in chosen:
        assert final.violation(weight.matrix(weight.value.detach())) is None
        rows, columns = weight.matrix(weight.value).shape
        per_step = weight.value.numel() // final.steps(rows, columns)
        share = step.share
        wanted = final.removed(rows, columns, share) * per_step
        if pattern != "unstructured":
            assert watch.masked[-1][weight.name] == wanted
    total = sum(weight.value.numel() for weight in chosen)
    if pattern == "unstructured":
        assert sum(watch.masked[-1].values()) == 83 * total // 100
    totals = [sum(counts.values()) for counts in watch.masked]
    assert totals == sorted(totals)
    assert totals[3] == 0
    assert len(set(totals)) >= 3
    for early, late in zip(watch.masks, watch.masks[1:], strict=False):
        assert all(bool(late[name][mask].all()) for name, mask in early.items())  # what is masked stays masked


def test_impossible_options_are_one_clear_error() -> None:
    with pytest.raises(RecipeError, match=r"rigl\.zeros"):
        create("reduce step", "rigl", {"zeros": 1.0}, "recipe")
    with pytest.raises(RecipeError, match="Allowed: accumulate"):
        create("reduce step", "l1", {"zeros": 0.5}, "recipe")
    with pytest.raises(RecipeError, match="leave zeros out"):
        create("reduce step", "gradual", {"pattern": "2:4", "zeros": 0.9}, "recipe")
    with pytest.raises(RecipeError, match="lower update_every"):
        create("reduce step", "gradual", {"steps": 10, "update_every": 50}, "recipe")
    with pytest.raises(RecipeError, match="outputs, inputs, or a block"):
        create("reduce step", "group_lasso", {"groups": "heads"}, "recipe")
    with pytest.raises(ModelError, match="do not fit first: 16 outputs x 18 inputs"):
        GroupLasso(groups="4x4").plan(sparse_weights(net(), False, (), "test"), 0)
    with pytest.raises(ModelError, match="pattern 2:4 does not fit first: 18 inputs are no multiple of 4"):
        Gradual(pattern="2:4").plan(sparse_weights(net(), False, (), "test"), 0)
    with pytest.raises(ModelError, match="no Linear or convolution"):
        sparse_weights(torch.nn.Sequential(torch.nn.LayerNorm(3)), False, (), "test")
    with pytest.raises(RecipeError, match=r"exclude 'head\*' matches no layer. Layers: first"):
        sparse_weights(net(), False, ("head*",), "test")


# As steps of a recipe


def context(model: Model, feeds: list[Feed], scratch: Path) -> ReduceContext:
    return ReduceContext(teacher=model, calibration=feeds, training=feeds, seed=0, threads=1, scratch=scratch)


def cases() -> list[tuple[Model, list[Feed]]]:
    found = [(model, tokens(model, (4, 6), (3, 5), (4, 4))) for model in (tiny_bert(), tiny_classifier(), tiny_llama())]
    labelled = tokens(found[1][0], (4, 6), (4, 6))
    return [
        *found,
        (tiny_classifier(), [{**feed, "labels": np.arange(4) % 3} for feed in labelled]),
        (two_heads(), images(4, 4)),
    ]


@pytest.mark.parametrize("method", sorted(TABLE))
def test_every_method_is_a_step_for_every_task(method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 12, "batch_size": 4, "learning_rate": 0.01}
    options |= {"zeros": 0.7} if method in (*MASKED, "gradual") else {"strength": 5.0}
    options |= {"update_every": 2} if method in ("set", "rigl", "gradual") else {}
    for place, (model, feeds) in enumerate(cases()):
        step = create("reduce step", method, options, "test")
        before = copy.deepcopy(model.module.state_dict())
        step.check(model)
        (tmp_path / str(place)).mkdir()
        reduced, change = step.apply(model, context(model, feeds, tmp_path / str(place)))
        assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
        weights = step.chosen(reduced.module, model.is_transformers)
        total = sum(weight.value.numel() for weight in weights)
        zeros = sum(int((weight.value == 0).sum()) for weight in weights)
        assert change.details["weights"] == total
        assert change.details["zeros"] == zeros == sum(change.details["zeros_by_layer"].values())
        if "zeros" in options:
            assert 7 * total // 10 <= zeros <= 7 * total // 10 + 3  # a grown weight may have had no gradient yet
        else:
            assert zeros > 0
        assert math.isfinite(change.details["loss_last"])
        assert reduced.module.training is False
        assert not any(part._forward_hooks for part in reduced.module.modules())


def test_transformers_models_keep_embeddings_and_head_dense() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    names = [weight.layer for weight in sparse_weights(tiny_llama().module, True, (), "test")]
    assert len(names) == 14
    assert all(name.startswith("model.layers.") for name in names)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=16))
    found = {weight.layer: weight for weight in sparse_weights(gpt2, True, (), "test")}
    assert list(found) == [
        "transformer.h.0." + name for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    weight = found["transformer.h.0.mlp.c_fc"]  # Conv1D keeps [inputs, outputs]
    assert weight.matrix(weight.value).shape == (32, 8)
    assert torch.equal(weight.stored(weight.matrix(weight.value)), weight.value)
    tied = [weight.layer for weight in sparse_weights(gpt2, False, (), "test")]
    assert "lm_head" not in tied  # it is the embedding table


class Killed(Exception):
    """Ends a run where it stands."""


@pytest.mark.parametrize("method", ["set", "rigl", "gradual", "l1"])
def test_a_run_that_was_cut_ends_with_the_same_bytes(method: str, tmp_path: Path) -> None:
    options = {"steps": 16, "batch_size": 2, "learning_rate": 0.01, "checkpoint_every": 4}
    options |= {"strength": 1.0} if method == "l1" else {"zeros": 0.7, "update_every": 3}
    step = create("reduce step", method, options, "test")
    model = tiny_llama()
    seen: list[float] = []

    def cut(text: str, done: float, total: float) -> None:
        if done == 10:
            raise Killed

    def watch(text: str, done: float, total: float) -> None:
        seen.append(done)

    given = context(model, tokens(model, (4, 6), (4, 6)), tmp_path)
    with pytest.raises(Killed):
        step.apply(model, dataclasses.replace(given, progress=cut))
    (tmp_path / "fresh").mkdir()
    ended = []
    for scratch in (tmp_path, tmp_path / "fresh"):
        reduced, change = step.apply(model, dataclasses.replace(given, scratch=scratch, progress=watch))
        ended.append(([value.detach().numpy().tobytes() for value in reduced.module.parameters()], change))
    assert ended[0] == ended[1]
    assert seen == [*range(9, 17), *range(1, 17)]  # from the checkpoint after 8 updates
