"""Sensitivity scan and allocation: what one pruned layer does to the model, replay or not; the exact optimum."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_prune_structured import bert, context, feeds, llama
from tiny_models import images, tiny_bert, tiny_llama, tokens, two_heads

from edgeredux.closeness import Gauge
from edgeredux.errors import DataError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.groups import find
from edgeredux.pruning.layers import layers
from edgeredux.pruning.replay import Replay
from edgeredux.pruning.sensitivity_allocation import hull, shares, value
from edgeredux.pruning.sensitivity_step import Sensitivity
from edgeredux.pruning.statistics import Collector, relative_error
from edgeredux.pruning.unstructured import Prune
from edgeredux.registry import create
from edgeredux.sensitivity_table import LayerCurve, SensitivityTable
from edgeredux.sparsity.counts import count_of, smallest


class Residual(torch.nn.Module):
    """A small net of an arbitrary kind: grouped convolution, ReLU in place, a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.act = torch.nn.ReLU(inplace=True)
        self.depthwise = torch.nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.again = torch.nn.Conv2d(4, 4, 1)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, image: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.act(self.stem(image))
        x = x + self.act(self.depthwise(x))
        x = self.again(self.again(x))
        scores = self.head(x.mean((2, 3))) + shift[:, :3]
        return {"scores": scores, "features": x.mean((2, 3))}


def residual() -> Model:
    torch.manual_seed(0)
    return two_heads().after(Residual().eval(), "")


CASES = {
    "bert": (tiny_bert, lambda m: tokens(m, (3, 9), (2, 5))),
    "llama": (tiny_llama, lambda m: tokens(m, (3, 9), (2, 5))),
    "net": (residual, lambda m: images(3, 2)),
}


def pruned_alone(model: Model, name: str, change: Any) -> Model:
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        change(module.get_submodule(name).weight)
    return model.after(module, "")


@pytest.mark.parametrize("case", list(CASES))
def test_replay_gives_what_the_whole_forward_pass_gives(case: str) -> None:
    make, data = CASES[case]
    model = make()
    batches = data(model)
    replay = Replay(model, layers(model), batches)
    before = copy.deepcopy(model.module.state_dict())
    for layer in layers(model):
        trial, kept = replay.layer(layer.name), layer.matrix().clone()
        trial.store(kept * 0.5)
        whole = pruned_alone(model, layer.name, lambda weight: weight.mul_(0.5))
        for index, feed in enumerate(batches):
            for name, given in replay.run(layer.name, index).items():
                np.testing.assert_array_equal(given, whole.run(feed)[name])
        trial.store(kept)
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


def test_replay_leaves_out_the_blocks_before_the_changed_one() -> None:
    model = tiny_bert()
    replay = Replay(model, layers(model), tokens(model, (2, 5)))
    assert replay.computed("encoder.layer.0.output.dense", 0) == ["encoder.layer.0", "encoder.layer.1"]
    assert replay.computed("encoder.layer.1.output.dense", 0) == ["encoder.layer.1"]
    net = Replay(residual(), layers(residual()), images(2))
    # The stem's output is changed in place, `again` runs twice: neither can be replayed.
    assert net.computed("head", 0) == ["stem", "depthwise", "again", "head"]


def test_a_scan_against_pruning_one_layer_by_hand(tmp_path: Path) -> None:
    model = bert()
    before = copy.deepcopy(model.module.state_dict())
    step = Sensitivity(method="magnitude", grid=(0.3, 0.7), samples=12)
    after, change = step.apply(model, context(model, tmp_path))
    assert not change.changed
    assert after is model
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    table = SensitivityTable.from_json(change.details["sensitivity"])
    assert [curve.layer for curve in table.curves] == [layer.name for layer in layers(model)]
    gauge = Gauge(model, feeds(3))
    for curve in table.curves[::5]:
        for place, share in enumerate((0.3, 0.7)):

            def zero(weight: torch.Tensor, share: float = share) -> None:
                count = count_of(share, weight.numel())
                weight.view(-1)[weight.abs().flatten().argsort(stable=True)[:count]] = 0

            alone = pruned_alone(model, curve.layer, zero)
            near = gauge.of_model(alone)
            weight = alone.module.get_submodule(curve.layer).weight
            assert curve.zeros[place] == int((weight == 0).sum()) / weight.numel()
            assert curve.loss[place] == pytest.approx(near.loss, rel=1e-6)
            assert curve.quality[place] == pytest.approx(near.quality, abs=1e-9)
            assert curve.relative_error[place] == pytest.approx(own_error(model, alone, curve.layer), rel=1e-4)


def own_error(model: Model, alone: Model, name: str) -> float:
    """||XW - XW'||^2 / ||XW||^2 of one layer, X as the dense model makes it at positions that are no padding."""
    seen: list[torch.Tensor] = []
    part, changed = model.module.get_submodule(name), alone.module.get_submodule(name)
    handle = part.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    for feed in feeds():
        model.run(feed)
        seen[-1] = seen[-1][torch.from_numpy(feed["attention_mask"]).bool()]
    handle.remove()
    x = torch.cat(seen)
    with torch.no_grad():
        whole, lost = x @ part.weight.T, x @ (part.weight - changed.weight).T
    return float(lost.square().sum() / whole.square().sum())


def test_output_error_against_the_outputs() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 7, 5), torch.randn(8, 5)  # two groups of four rows
    pruned = weight * (torch.rand_like(weight) > 0.5)
    whole = torch.cat([x[g] @ weight[4 * g : 4 * g + 4].T for g in (0, 1)], 1)
    left = torch.cat([x[g] @ pruned[4 * g : 4 * g + 4].T for g in (0, 1)], 1)
    expected = float((whole - left).square().sum() / whole.square().sum())
    known = Collector("gram").take([x[:, :3], x[:, 3:]])
    assert relative_error(weight, pruned, known) == pytest.approx(expected, rel=1e-5)
    assert relative_error(torch.zeros(8, 5), torch.zeros(8, 5), known) is None


@pytest.mark.parametrize("make", [bert, llama])
@pytest.mark.parametrize(("pattern", "kind"), [("neurons", "ffn"), ("heads", "heads")])
def test_units_are_taken_out_as_structured_pruning_would(make: Any, pattern: str, kind: str, tmp_path: Path) -> None:
    from edgeredux.pruning.groups import remove

    model = make()
    step = Sensitivity(method="magnitude", pattern=pattern, grid=(0.5,), samples=8)
    _, change = step.apply(model, context(model, tmp_path))
    groups = [group for group in find(model.module) if group.kind == kind]
    assert [row["layer"] for row in change.details["sensitivity"]["layers"]] == [group.reader for group in groups]
    for group, row in zip(groups, change.details["sensitivity"]["layers"], strict=True):
        module = copy.deepcopy(model.module)
        scores = module.get_submodule(group.reader).weight.square().sum(0).view(group.units, -1).sum(1)
        keep = (~smallest(scores, count_of(0.5, group.units))).nonzero()[:, 0]
        remove(module, group, keep)
        assert row["zeros"] == [1 - len(keep) / group.units]
        # Cut shapes and zeroed columns are the same function, summed in another order.
        assert row["loss"][0] == pytest.approx(Gauge(model, feeds(2)).of_model(model.after(module, "")).loss, rel=1e-3)


def test_shared_inputs_of_n_m_and_a_grouped_convolution(tmp_path: Path) -> None:
    _, change = Sensitivity(pattern="2:4", method="sparsegpt").apply(bert(), context(bert(), tmp_path))
    assert {tuple(row["zeros"]) for row in change.details["sensitivity"]["layers"]} == {(0.5,)}
    model = residual()
    _, change = Sensitivity(grid=(0.5, 0.75)).apply(model, context(model, tmp_path, images(8)))
    rows = {row["layer"]: row for row in change.details["sensitivity"]["layers"]}
    assert rows["depthwise"]["zeros"] == pytest.approx([4 / 9, 6 / 9])  # of the nine inputs of each row
    assert all(len(row["loss"]) == 2 for row in rows.values())


@pytest.mark.parametrize("method", ["taylor", "fisher", "magnitude", "wanda"])
def test_a_grouped_layer_loses_what_the_step_prune_takes_from_it(method: str, tmp_path: Path) -> None:
    model, given = residual(), images(8)
    _, change = Sensitivity(method=method, grid=(0.5,), layers=("depthwise",)).apply(
        model, context(model, tmp_path, given)
    )
    alone, _ = Prune(zeros=0.5, method=method, exclude=("stem", "again", "head")).apply(
        model, context(model, tmp_path, given)
    )
    row = change.details["sensitivity"]["layers"][0]
    assert row["loss"] == [pytest.approx(Gauge(model, given).of_model(alone).loss, rel=1e-6)]
    assert row["loss"][0] > 0


def test_layers_by_name_and_what_is_refused(tmp_path: Path) -> None:
    model = bert()
    step = Sensitivity(layers=("*.query", "*.key"), exclude=("*.1.*",))
    _, change = step.apply(model, context(model, tmp_path))
    assert [row["layer"].rpartition(".")[2] for row in change.details["sensitivity"]["layers"]] == ["query", "key"]
    for options, said in (
        ({"pattern": "nothing"}, "neurons, heads"),
        ({"grid": [0.5, 0.3]}, "must rise"),
        ({"grid": [0.0]}, "greater than 0"),
        ({"grid": []}, "at least 1 item"),
        ({"method": "guess"}, "guess"),
        ({"compare": "row", "pattern": "2:4"}, "unstructured"),
        ({"samples": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(RecipeError, match=said) as problem:
            create("reduce step", "sensitivity", options, "here")
        assert "\n" not in str(problem.value)
    for options, said in (
        ({"layers": ["*.nothing"]}, "matches none"),
        ({"pattern": "heads", "grid": (0.1,)}, "removes nothing"),
        ({"pattern": "1x7"}, "does not fit"),
    ):
        with pytest.raises((RecipeError, ModelError), match=said):
            create("reduce step", "sensitivity", options, "here").check(model)
    with pytest.raises(ModelError, match="heads of a known structure"):
        Sensitivity(pattern="heads").check(residual())
    with pytest.raises(DataError):
        Sensitivity().apply(model, context(model, tmp_path, []))


def test_the_same_scan_twice_and_progress_to_the_end(tmp_path: Path) -> None:
    import dataclasses

    model, said = bert(), []
    given = dataclasses.replace(context(model, tmp_path), progress=lambda text, done, total: said.append((done, total)))
    first, second = (Sensitivity(method="sparsegpt", grid=(0.5,)).apply(model, given)[1] for _ in (0, 1))
    assert first == second
    assert said[: 12 + 1] == [(place, 12) for place in range(13)]


# Allocation


def test_hull_and_interpolation() -> None:
    points = [(0.0, 0.0), (0.2, 0.5), (0.4, 0.4), (0.6, 2.0)]
    assert hull(points) == [(0.0, 0.0), (0.4, 0.4), (0.6, 2.0)]
    assert hull([(0.0, 0.0), (0.5, 1.0), (1.0, 2.0)]) == [(0.0, 0.0), (1.0, 2.0)]
    assert value(points, 0.1) == pytest.approx(0.25)
    assert value(points, 0.7) == pytest.approx(2.8)


def test_shares_against_every_possible_choice() -> None:
    """Three convex curves on a grid of tenths: no combination with the same total loses less."""
    curves = {
        "a": [(0.0, 0.0), (0.3, 0.1), (0.6, 0.5), (0.9, 3.0)],
        "b": [(0.0, 0.0), (0.3, 0.0), (0.6, 0.05), (0.9, 0.4)],
        "c": [(0.0, 0.0), (0.3, 0.4), (0.6, 1.0), (0.9, 2.0)],
    }
    weights = {"a": 100, "b": 200, "c": 50}
    for zeros, floor, ceiling in ((0.4, 0.0, 0.9), (0.5, 0.3, 0.7), (0.6, 0.5, 0.9)):
        found = shares(curves, weights, zeros, floor, ceiling)
        assert sum(found[n] * weights[n] for n in curves) == pytest.approx(zeros * 350)
        assert all(floor - 1e-12 <= share <= ceiling + 1e-12 for share in found.values())
        mine = sum(value(curves[n], found[n]) for n in curves)
        grid = [k / 20 for k in range(round(20 * floor), round(20 * ceiling) + 1)]
        least = min(
            sum(value(curves[n], z) for n, z in zip("abc", choice, strict=True))
            for choice in itertools.product(grid, repeat=3)
            if sum(z * weights[n] for n, z in zip("abc", choice, strict=True)) >= zeros * 350 - 1e-9
        )
        assert mine <= least + 1e-9


def test_the_layer_that_minds_keeps_more_and_bounds_hold() -> None:
    curves = {"much": [(0.0, 0.0), (0.5, 1.0), (0.9, 5.0)], "little": [(0.0, 0.0), (0.5, 0.01), (0.9, 0.1)]}
    weights = dict.fromkeys(curves, 10)
    assert shares(curves, weights, 0.5, 0.3, 0.7) == pytest.approx({"much": 0.3, "little": 0.7})
    assert shares(curves, weights, 0.5, 0.5, 0.5) == pytest.approx({"much": 0.5, "little": 0.5})


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "alps", "taylor"])
def test_guided_pruning_has_the_exact_total_within_its_spread(method: str, tmp_path: Path) -> None:
    model = bert()
    before = copy.deepcopy(model.module.state_dict())
    pruned, change = Prune(zeros=0.6, method=method, allocation="sensitivity").apply(model, context(model, tmp_path))
    sizes = {layer.name: layer.matrix().numel() for layer in layers(model)}
    zeros: Mapping[str, int] = change.details["zeros_by_layer"]
    exact = count_of(0.6, sum(sizes.values()))
    # Wanda removes whole columns' worth, one weight of every row: the total is the nearest multiple below.
    assert (
        exact - (min(len(layer.matrix()) for layer in layers(model)) if method == "wanda" else 1)
        < sum(zeros.values())
        <= exact
    )
    assert all(0.4 - 0.04 <= zeros[name] / sizes[name] <= 0.8 + 0.04 for name in sizes)
    assert len({round(zeros[name] / sizes[name], 2) for name in sizes}) > 1
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    again, _ = Prune(zeros=0.6, method=method, allocation="sensitivity").apply(model, context(model, tmp_path))
    assert all(torch.equal(again.module.state_dict()[n], v) for n, v in pruned.module.state_dict().items())


def test_guided_pruning_loses_less_where_one_layer_does_nothing(tmp_path: Path) -> None:
    """A block whose outputs are scaled away can lose all it may; uniform pruning does not see it."""
    model = bert()
    with torch.no_grad():
        for part in ("attention.output.dense", "output.dense"):
            model.module.get_submodule(f"encoder.layer.0.{part}").weight.mul_(1e-3)
    gauge = Gauge(model, feeds())
    losses = {}
    for way in ("uniform", "sensitivity"):
        pruned, _ = Prune(zeros=0.5, method="magnitude", allocation=way).apply(model, context(model, tmp_path))
        losses[way] = gauge.of_model(pruned).loss
    assert losses["sensitivity"] < losses["uniform"]


def test_a_layer_too_small_for_its_cells_is_named(tmp_path: Path) -> None:
    model = bert()  # two blocks of 16 inputs in each band: a share of 0.4 takes neither
    step = Prune(zeros=0.2, pattern="tile:4x16", allocation="sensitivity")
    with pytest.raises(RecipeError, match=r"0.4 takes nothing of encoder.layer.0.attention.self.query .* exclude it"):
        step.apply(model, context(model, tmp_path))


def test_n_m_has_no_allocation() -> None:
    with pytest.raises(RecipeError, match="allocation"):
        create("reduce step", "prune", {"pattern": "2:4", "allocation": "sensitivity"}, "here")


# The table


def test_table_to_csv_and_back(tmp_path: Path) -> None:
    model = bert()
    _, change = Sensitivity(grid=(0.5, 0.9)).apply(model, context(model, tmp_path))
    table = SensitivityTable.from_json(change.details["sensitivity"])
    text = table.to_csv()
    assert text.splitlines()[0] == "parameter,sparsity,quality,relative_error,loss,task_loss"
    assert text.splitlines()[1].startswith("encoder.layer.0.attention.self.query.weight,0.0,1.0,0.0,0.0")
    again = SensitivityTable.from_csv(text, table.how)
    for a, b in zip(again.curves, table.curves, strict=True):
        assert (a.layer, a.zeros, a.loss, a.quality, a.relative_error) == (
            b.layer, b.zeros, b.loss, b.quality, b.relative_error,
        )  # fmt: skip
    for bad in (
        "",
        "a,b\n1,2\n",
        "parameter,sparsity,loss,top1\nx,0.5,much,1\n",
        "parameter,sparsity,loss,top1\nx,0.5,nan,1\n",
        "parameter,sparsity,loss,top1\nx,0.5,1,70\n",
        "parameter,sparsity,loss,top1\nx,0.0,1,70\n",
    ):
        with pytest.raises(DataError, match="sensitivity table"):
            SensitivityTable.from_csv(bad, "")


def test_sensitivity_is_the_mean_loss_over_the_zeros() -> None:
    curve = LayerCurve("a", 10, (0.5, 1.0), (1.0, 3.0), (0.0, 0.0), (None, None))
    assert curve.sensitivity() == pytest.approx((0.25 + 1.0) / 1.0)
    raised = LayerCurve("a", 10, (0.5, 1.0), (3.0, 5.0), (0.0, 0.0), (None, None))
    assert raised.sensitivity(2.0) == pytest.approx(1.25)


def test_distillers_tables_read_and_order_alike(shared_data: Path) -> None:
    """Its published tables come in the columns that ours share; the same reader ranks their layers."""
    found = sorted((shared_data / "profiles-distiller-sensitivity").rglob("*.csv"))
    assert len(found) >= 10
    for path in found:
        table = SensitivityTable.from_csv(path.read_text(encoding="utf-8"), path.stem)
        assert table.dense_loss > 0
        assert 50 < table.dense_quality < 100
        order = table.by_sensitivity()
        assert order[0].sensitivity(table.dense_loss) > order[-1].sensitivity(table.dense_loss)
    alexnet = next(path for path in found if "alexnet" in str(path))
    table = SensitivityTable.from_csv(alexnet.read_text(encoding="utf-8"), "alexnet")
    assert len(table.curves) == 8
    # Han et al. 2015, fig. 6: AlexNet's convolutions mind more than its first fully connected layer, of 38 M weights.
    order = [curve.layer for curve in table.by_sensitivity()]
    assert order.index("features.module.3") < order.index("classifier.1")
    assert set(table.to_csv().splitlines()[0].split(",")) >= {"parameter", "sparsity", "loss"}
