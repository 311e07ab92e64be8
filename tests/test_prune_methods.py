"""Every method in every pattern, and the solvers against their papers' formulas on cases small enough to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_prune_structured import bert, context, feeds
from test_prune_unstructured import generic

from edgeredux.pruning.alps import alps, refitted
from edgeredux.pruning.gradients import gradients
from edgeredux.pruning.layers import Layer, layers
from edgeredux.pruning.methods import METHODS
from edgeredux.pruning.sparsegpt import sparsegpt
from edgeredux.pruning.statistics import towards
from edgeredux.pruning.surgeon import remove_blocks
from edgeredux.pruning.unstructured import Prune
from edgeredux.sparsity.patterns import parse

PATTERNS = ["unstructured", "2:4", "4:8", "1:4", "1x4", "1x16", "4x4", "tile:4x8"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_exact_count_of_every_pattern(method: str, pattern: str, tmp_path: Path) -> None:
    model = bert()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    zeros = None if ":" in pattern and "tile" not in pattern else 0.4
    step = Prune(zeros=zeros, method=method, pattern=pattern)
    pruned, change = step.apply(model, context(model, tmp_path))
    shape = parse(pattern)
    for layer in layers(pruned):
        weight = layer.matrix()
        removed = shape.removed(*weight.shape, step.share)
        if method == "wanda" and pattern == "unstructured":
            asked = len(weight) * (weight.shape[1] * 2 // 5)
        else:
            asked = removed * weight.numel() // shape.steps(*weight.shape)
        assert int((weight == 0).sum()) == asked == change.details["zeros_by_layer"][layer.name]
        assert shape.violation(weight) is None
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    again, _ = step.apply(model, context(model, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(pruned.module.parameters(), again.module.parameters(), strict=True))


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight, correlated inputs and their Gram matrix."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(200, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return weight, x, x.T @ x


def loss(weight: torch.Tensor, pruned: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (weight - pruned).T).square().sum() / (x @ weight.T).square().sum())


def naive_sparsegpt(weight: torch.Tensor, gram: torch.Tensor, removed: int, damping: float) -> torch.Tensor:
    """Algorithm 1 with an explicit inverse of what is left of H at every column, all columns in one block."""
    h = (gram + damping * gram.diagonal().mean() * torch.eye(len(gram))).double()
    w = weight.double().clone()
    columns = w.shape[1]
    pivots = torch.stack([torch.linalg.inv(h[j:, j:])[0, 0] for j in range(columns)])
    flat = (w.square() / pivots).flatten()
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.argsort(stable=True)[:removed]] = True
    mask = mask.view_as(w)
    for j in range(columns):
        inverse = torch.linalg.inv(h[j:, j:])
        for row in range(len(w)):
            if mask[row, j]:
                w[row, j:] -= w[row, j] / inverse[0, 0] * inverse[0]
                w[row, j] = 0
    return w.float()


def test_sparsegpt_against_explicit_inverses() -> None:
    weight, _, gram = problem(5, 12)
    mine = sparsegpt(weight, gram, parse("unstructured"), 30, damping=0.01)
    # Cholesky in float32 against inverses in float64: about 1e-7 times the condition number, some 1e3 here.
    torch.testing.assert_close(mine, naive_sparsegpt(weight, gram, 30, 0.01), rtol=2e-3, atol=2e-3)


def test_sparsegpt_chooses_two_of_four_from_the_updated_weights() -> None:
    weight, x, gram = problem(16, 32)
    pruned = sparsegpt(weight, gram, parse("2:4"), 2)
    masked = weight.masked_fill(parse("2:4").mask(weight.square() * gram.diagonal(), 2), 0.0)
    assert parse("2:4").violation(pruned) is None
    assert loss(weight, pruned, x) < 0.8 * loss(weight, masked, x)


def test_removed_blocks_leave_the_least_squares_solution() -> None:
    weight, x, gram = problem(6, 16)
    damping = 0.01
    pruned = remove_blocks(weight, gram, 4, 2, damping)
    kept = (pruned != 0).any(0)
    assert int(kept.sum()) == 8
    ridge = (damping * gram.diagonal().mean()).sqrt()
    design = torch.cat([x, ridge * torch.eye(16)]).double()
    wanted = torch.linalg.lstsq(design[:, kept], design @ weight.double().T).solution.T
    torch.testing.assert_close(pruned[:, kept], wanted.float(), rtol=1e-4, atol=1e-4)


def test_removed_blocks_go_in_the_order_of_what_they_cost() -> None:
    weight, _, gram = problem(6, 12, seed=4)
    first = remove_blocks(weight, gram, 4, 1, 0.01)
    h = (gram + 0.01 * gram.diagonal().mean() * torch.eye(12)).double()
    costs = []
    for block in range(3):
        kept = [j for j in range(12) if j // 4 != block]
        whole = weight.double()
        rest = torch.linalg.solve(h[kept][:, kept], h[kept] @ whole.T).T
        error = whole.clone()
        error[:, kept] -= rest
        costs.append(float(((error @ h) * error).sum()))
    assert (first == 0).all(0).nonzero().flatten().tolist() == list(
        range(4 * np.argmin(costs), 4 * np.argmin(costs) + 4)
    )


def test_alps_refits_to_the_optimum_of_its_support() -> None:
    weight, _x, gram = problem(5, 12, seed=2)
    h = gram / 200 + 0.01 * torch.eye(12)
    mask = parse("unstructured").mask(torch.rand(5, 12, generator=torch.Generator().manual_seed(0)), 30)
    mine = refitted(weight, h, mask, weight, 60)
    for row in range(5):
        kept = ~mask[row]
        wanted = torch.linalg.solve(h[kept][:, kept].double(), (h[kept] @ weight[row]).double())
        torch.testing.assert_close(mine[row, kept].double(), wanted, rtol=1e-3, atol=1e-3)
    assert bool((mine[mask] == 0).all())


@pytest.mark.parametrize("name", ["unstructured", "2:4", "tile:2x4"])
def test_the_solvers_lose_less_than_masks(name: str) -> None:
    """ALPS below SparseGPT below Wanda's score in reconstruction error, as both papers report, on correlated inputs."""
    weight, x, gram = problem(32, 64, seed=5)
    pattern = parse(name)
    removed = pattern.removed(32, 64, 0.5)
    masked = weight.masked_fill(pattern.mask(weight.square() * gram.diagonal(), removed), 0.0)
    surgeon = sparsegpt(weight, gram, pattern, removed)
    admm = alps(weight, gram, pattern, removed)
    assert loss(weight, surgeon, x) < loss(weight, masked, x)
    if not pattern.bands:  # the surgeon's exact removal is the better one where whole bands go
        assert loss(weight, admm, x) < loss(weight, surgeon, x)
    assert loss(weight, admm, x) < 0.8 * loss(weight, masked, x)


def test_gradients_against_autograd_by_hand() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).eval()
    model = generic(module)
    batches = [{"x": np.random.default_rng(i).normal(size=(5, 4)).astype(np.float32)} for i in range(2)]
    found = gradients(model, ["0", "2"], batches, seed=7)
    generator = torch.Generator().manual_seed(7)
    sums = torch.zeros(3, 4), torch.zeros(3, 4)
    for batch in batches:
        out = module(torch.from_numpy(batch["x"]))
        slope = torch.autograd.grad((out * torch.randn(5, 2, generator=generator)).sum() / 5, module[0].weight)[0]
        sums[0].add_(slope.abs() / 2)
        sums[1].add_(slope.square() / 2)
    torch.testing.assert_close(found["0"][0], sums[0])
    torch.testing.assert_close(found["0"][1], sums[1])


@pytest.mark.parametrize("method", ["magnitude", "random", "taylor", "fisher"])
def test_groups_of_a_convolution_are_scored_by_their_own_rows(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=4)).eval()
    model = generic(module)
    batches = [{"x": np.random.default_rng(i).normal(size=(6, 8, 5, 5)).astype(np.float32)} for i in range(2)]
    pruned, change = Prune(zeros=0.5, method=method).apply(model, context(model, tmp_path, batches))
    assert change.details["zeros"] == change.details["weights"] // 2
    gone = (pruned.module[0].weight == 0).flatten(1)
    assert (gone.view(4, -1).sum(1) == 18).all()  # half of 2 rows of 18 weights in every group
    if method in ("taylor", "fisher"):
        absolute, square = gradients(model, ["0"], batches, 0)["0"]
        weight = module[0].weight.detach().flatten(1)
        score = (weight * absolute).square() if method == "taylor" else weight.square() * square
        for group in range(4):
            part = score[2 * group : 2 * group + 2].flatten()
            wanted = torch.zeros_like(part, dtype=torch.bool).scatter_(0, part.argsort()[:18], True)
            assert torch.equal(gone[2 * group : 2 * group + 2].flatten(), wanted)
    if method == "random":
        assert not torch.equal(gone[:2], gone[2:4])


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "alps"])
def test_convolutions_are_pruned_by_their_patches(method: str, tmp_path: Path) -> None:
    """A convolution is pruned as the Linear over its unfolded inputs, each group of a grouped one by its own."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, padding=1, stride=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, groups=2, padding="same"),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 16, 4),
    ).eval()
    model = generic(module)
    batches = [{"x": np.random.default_rng(i).normal(size=(6, 4, 8, 8)).astype(np.float32)} for i in range(4)]
    _pruned, change = Prune(zeros=0.5, method=method).apply(model, context(model, tmp_path, batches))
    assert change.details["zeros"] == change.details["weights"] // 2
    same = Layer("0", module[0])
    x = torch.from_numpy(batches[0]["x"])
    patches = same.positions(x, None)[0]
    made = (patches @ same.matrix().T + module[0].bias).view(6, 4, 4, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(made, module[0](x), rtol=1e-4, atol=1e-5)
    grouped = Layer("2", module[2])
    inputs = torch.relu(module[0](x))
    parts = grouped.positions(inputs, None)
    halves = [parts[g] @ grouped.matrix()[4 * g : 4 * g + 4].T for g in range(2)]
    made = torch.cat(halves, 1).view(6, 4, 4, 8).permute(0, 3, 1, 2) + module[2].bias[:, None, None]
    torch.testing.assert_close(made, module[2](inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("allocation", ["global", "owl"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "alps"])
def test_uneven_layers_keep_the_exact_total(method: str, allocation: str, tmp_path: Path) -> None:
    model = bert()
    step = Prune(zeros=0.41, method=method, allocation=allocation, compare="matrix", spread=0.2)
    _, change = step.apply(model, context(model, tmp_path))
    assert change.details["zeros"] == int(41 * change.details["weights"] / 100)
    shares = {
        name: zeros / layer.matrix().numel()
        for layer, (name, zeros) in zip(layers(model), change.details["zeros_by_layer"].items(), strict=True)
    }
    assert max(shares.values()) > min(shares.values()) + 0.01


def test_calibration_goes_through_the_model_once(tmp_path: Path) -> None:
    """Every layer runs once a batch: observing costs no pass of its own."""
    model = bert()
    calls: dict[str, int] = {}
    for name, part in model.module.named_modules():
        part.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1))
    # The copy that is pruned keeps these hooks.
    pruned, _ = Prune(zeros=0.5, method="sparsegpt").apply(model, context(model, tmp_path))
    last = layers(pruned)[-1].name
    counted = {name: count for name, count in calls.items() if "dense" in name or "self." in name}
    assert counted.pop(last, 0) == 0  # the passes end where the last layer begins
    assert set(counted.values()) == {len(feeds())}


def test_reference_dense_makes_up_for_what_layers_before_lost(tmp_path: Path) -> None:
    """Against the formula by numpy's least squares, and the whole model comes nearer to the dense one."""
    weight, x, gram = problem(4, 6, seed=8)
    dense = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    mine = towards(weight, gram, dense.T @ x, 0.1)
    ridge = float((0.1 * gram.diagonal().mean()).sqrt())
    design = np.concatenate([x.double().numpy(), ridge * np.eye(6)])
    wanted = np.concatenate([(dense @ weight.T).double().numpy(), ridge * weight.T.double().numpy()])
    np.testing.assert_allclose(mine.T.numpy(), np.linalg.lstsq(design, wanted, rcond=None)[0], rtol=1e-3, atol=1e-4)
    torch.manual_seed(0)
    module = torch.nn.Sequential(*[part for _ in range(3) for part in (torch.nn.Linear(24, 24), torch.nn.ReLU())])
    model = generic(module.eval())
    batches = [{"x": np.random.default_rng(i).normal(size=(64, 24)).astype(np.float32)} for i in range(8)]
    errors = []
    for reference in ("layer", "dense"):
        step = Prune(zeros=0.6, method="sparsegpt", reference=reference)
        pruned, change = step.apply(model, context(model, tmp_path, batches))
        assert change.details["zeros"] == int(0.6 * 576) * 3
        errors.append(sum(float(np.square(pruned.run(b)["y"] - model.run(b)["y"]).sum()) for b in batches))
    assert errors[1] < errors[0]
    with pytest.raises(ValueError, match="sparsegpt and alps"):
        Prune(method="wanda", reference="dense")
