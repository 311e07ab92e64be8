"""The step `channels`: exact counts, scores by their formulas, repair, saving, export, clear errors."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import channel_nets as nets
import numpy as np
import pytest
import torch
from torch import nn

from edgeredux import loading
from edgeredux.errors import DataError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.channels import Channels
from edgeredux.pruning.channels_allocation import choose
from edgeredux.pruning.channels_scores import unit_scores
from edgeredux.pruning.coupling import Coupling, Group, Port
from edgeredux.pruning.coupling_trace import coupling, trace
from edgeredux.pruning.repair import ridge_fit
from edgeredux.registry import create
from edgeredux.seams import Feed, ReduceContext


def context(model: Model, batches: list[Feed], scratch: Path = Path()) -> ReduceContext:
    return ReduceContext(teacher=model, calibration=batches, training=batches, seed=0, threads=1, scratch=scratch)


def reduced(name: str, **options: Any) -> tuple[Model, Model, Any]:
    model = nets.net(name)
    small, change = Channels(**options).apply(model, context(model, nets.feeds_of(nets.NETS[name][1])))
    return model, small, change


def coupled(model: Model, shape: tuple[int, ...]) -> Coupling:
    return coupling(model, trace(model, nets.feeds_of(shape, 1, 4)[0]))


@pytest.mark.parametrize("name", nets.NETS)
def test_counts_are_exact_shapes_shrink_and_the_input_is_untouched(name: str, tmp_path: Path) -> None:
    model, shape = nets.net(name), nets.NETS[name][1]
    before = copy.deepcopy(model.module.state_dict())
    batches = nets.feeds_of(shape)
    small, change = Channels(share=0.4).apply(model, context(model, batches))
    dense_groups, small_groups = coupled(model, shape).groups, coupled(small, shape).groups
    for old, new in zip(dense_groups, small_groups, strict=True):
        assert old.name == new.name
        assert len(new.units) == len(old.units) - int(0.4 * len(old.units))
    assert change.changed
    assert small.parameters() == sum(value.numel() for value in small.module.parameters()) < model.parameters()
    assert all(torch.equal(before[key], value) for key, value in model.module.state_dict().items())
    first = small.run(batches[0])
    assert {key: value.shape for key, value in first.items()} == {k: v.shape for k, v in model.run(batches[0]).items()}
    loading.save(small, tmp_path / "saved")
    again = loading.load_reduced(tmp_path / "saved", model)
    for key, value in again.run(batches[0]).items():
        np.testing.assert_array_equal(value, first[key])
    assert [repr(part) for part in again.module.modules()] == [repr(part) for part in small.module.modules()]


def test_same_recipe_same_bytes() -> None:
    for importance in ("activation", "random", "taylor"):
        one, two = (reduced("mobile", share=0.5, importance=importance)[1] for _ in range(2))
        for key, value in one.module.state_dict().items():
            assert torch.equal(value, two.module.state_dict()[key]), key


IMPORTANCES = ("activation", "magnitude", "taylor", "bn_scale", "random", "fisher", "wanda", "sparsegpt", "alps")


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_every_importance_with_every_allocation(importance: str, allocation: str) -> None:
    _, _, change = reduced("mobile", share=0.3, importance=importance, allocation=allocation)
    counts = [tuple(map(int, said.split(" of "))) for said in change.details["removed"].values()]
    units = sum(total for _, total in counts)
    if allocation == "global":
        assert sum(gone for gone, _ in counts) == int(0.3 * units)
        assert all(gone < total for gone, total in counts)
    else:
        assert all(gone == int(0.3 * total) for gone, total in counts)


def test_scores_against_their_formulas() -> None:
    """One convolution, BatchNorm, ReLU, two readers; every score written out channel by channel."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5)
            self.left, self.right = nn.Conv2d(5, 3, 3), nn.Conv2d(5, 3, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.conv(x)).relu()
            return self.left(x) + self.right(x)

    torch.manual_seed(0)
    model = nets.model_of(Two(), (2, 8, 8))
    net, found, batches = model.module, coupled(model, (2, 8, 8)), nets.feeds_of((2, 8, 8), 2, 6)
    order = np.argsort(found.groups[0].units)

    def score(importance: str) -> list[float]:
        return unit_scores(model, found, found.groups, importance, batches, 0)[0].numpy()[order].tolist()

    hidden = torch.cat([net.norm(net.conv(torch.from_numpy(feed["x"]))).relu() for feed in batches]).detach()
    energy, weights = [], []
    for channel in range(5):
        both = sum(float(part.weight[:, channel].detach().square().sum()) for part in (net.left, net.right))
        energy.append(float(hidden[:, channel].square().mean()) * both)
        own = (net.conv.weight[channel], net.conv.bias[channel], net.norm.weight[channel], net.norm.bias[channel])
        weights.append(both + sum(float(part.detach().square().sum()) for part in own))
    np.testing.assert_allclose(score("activation"), energy, rtol=1e-5)
    np.testing.assert_allclose(score("magnitude"), weights, rtol=1e-5)
    np.testing.assert_allclose(score("bn_scale"), net.norm.weight.abs().detach().numpy(), rtol=1e-6)


def test_taylor_against_removal_in_a_linear_net() -> None:
    """Where the output is linear in a channel, the mean square of random projections is its removal's exactly."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Tanh(), nn.Conv1d(4, 2, 1), nn.Flatten(), nn.Linear(6, 3))
    model = nets.model_of(module, (1, 5))
    x = np.random.default_rng(0).standard_normal((20000, 1, 5)).astype(np.float32)
    found = coupled(model, (1, 5))
    group = next(group for group in found.groups if group.name == "0")
    exact = []
    with torch.no_grad():
        hidden = module[1](module[0](torch.from_numpy(x)))
        for channel in np.argsort(group.units):
            silent = hidden.clone()
            silent[:, channel] = 0
            exact.append(float((module[2:](hidden) - module[2:](silent)).square().sum(1).mean()))
    score = unit_scores(model, found, [group], "taylor", [{"x": x}], 0)[0].numpy()
    np.testing.assert_allclose(score, exact, rtol=0.05)  # 20000 random directions


def test_element_scores_are_summed_over_what_a_channel_feeds() -> None:
    """Wanda's scores of single weights, summed, against x and w of a grouped reader written out."""
    torch.manual_seed(0)
    model = nets.model_of(
        nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 3, groups=2), nn.Conv2d(4, 1, 1)), (2, 6, 6)
    )
    found, batches = coupled(model, (2, 6, 6)), nets.feeds_of((2, 6, 6), 2, 5)
    group = next(group for group in found.groups if group.name == "0")
    score = unit_scores(model, found, [group], "wanda", batches, 0)[0]
    hidden = torch.cat([model.module[0](torch.from_numpy(feed["x"])) for feed in batches]).detach()
    patches = torch.nn.functional.unfold(hidden, 3).view(10, 8, 9, -1)
    weight = model.module[1].weight.detach().view(4, 4, 9)
    for unit, position in enumerate(np.argsort(group.units)):
        total = 0.0
        for half in range(2):
            squares = patches[:, 4 * half + position].square().sum((0, 2))
            total += float((weight[2 * half : 2 * half + 2, position].square() * squares).sum())
        assert float(score[unit]) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("importance", ["activation", "taylor", "wanda", "fisher"])
def test_what_does_nothing_goes_first_and_the_function_stays(importance: str) -> None:
    model = nets.net("mobile")
    with torch.no_grad():
        net = model.module
        for part in (net.head, net.project[0], net.squeeze, net.excite):
            part.weight[:, ::2] = 0
    batches = nets.feeds_of((3, 8, 8))
    small, _ = Channels(share=0.5, importance=importance, repair="none", exclude=("stem.*",)).apply(
        model, context(model, batches)
    )
    np.testing.assert_allclose(small.run(batches[0])["y"], model.run(batches[0])["y"], atol=1e-5)


def test_minimum_multiple_and_exclude() -> None:
    model, small, _ = reduced("mobile", share=0.5, multiple_of=8)
    assert small.module.expand[0].out_channels == 16  # 24 - 12 = 12, rounded up
    assert small.module.stem[0].out_channels == 8
    assert small.module.squeeze.out_channels == 6  # narrower than 8
    _, small, _ = reduced("mobile", share=0.9, minimum=5)
    assert small.module.squeeze.out_channels == 5
    assert small.module.stem[0].out_channels == 5
    _, small, change = reduced("mobile", share=0.5, exclude=("expand.*",))
    assert small.module.expand[0].out_channels == 24
    assert small.module.depthwise[0].groups == 24
    assert small.module.squeeze.out_channels == 3
    assert change.details["left_alone"]["depthwise.0"] == "excluded (expand.0)"
    assert model.module.expand[0].out_channels == 24


def test_global_allocation_takes_the_smallest_of_all() -> None:
    place = ("w", 0)
    groups = [
        Group(np.arange(1 + 4 * g, 5 + 4 * g), (Port("m", np.arange(1 + 4 * g, 5 + 4 * g), place),), (), ())
        for g in (0, 1)
    ]
    scores = [torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 5.0, 0.5, 9.0])]
    assert [part.tolist() for part in choose(groups, scores, 0.5, "global", 1, 1)] == [[1, 2, 3], [7]]
    assert [part.tolist() for part in choose(groups, scores, 0.5, "uniform", 1, 1)] == [[1, 2], [5, 7]]
    assert [part.tolist() for part in choose(groups, scores, 0.5, "global", 2, 1)] == [[1, 2], [5, 7]]
    with pytest.raises(RecipeError, match="only 4 can"):
        choose(groups, scores, 0.75, "global", 2, 1)


def test_ridge_fit_against_lstsq_and_its_own_optimum() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 5, generator=generator) + 1, torch.randn(300, 3, generator=generator) + 2
    start = torch.randn(3, 5, generator=generator)
    weight, bias = ridge_fit([x[:100], x[100:]], [y[:100], y[100:]], start, 1e-9, intercept=True, where="t")
    design = np.concatenate([x.numpy(), np.ones((300, 1))], 1)
    wanted = np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    assert bias is not None
    np.testing.assert_allclose(weight.numpy(), wanted[:5].T, atol=1e-5)
    np.testing.assert_allclose(bias.numpy(), wanted[5], atol=1e-5)
    weight, none = ridge_fit([x], [y], start, 0.1, intercept=False, where="t")
    assert none is None
    gram = x.double().T @ x.double()
    slope = (x.double() @ weight.T - y.double()).T @ x.double() + 0.1 * gram.diagonal().mean() * (
        weight - start.double()
    )
    np.testing.assert_allclose(slope.numpy(), 0, atol=1e-8)
    with pytest.raises(DataError, match="too few"):
        ridge_fit([x[:9]], [y[:9]], start, 0.1, intercept=True, where="t")


@pytest.mark.parametrize("name", ["mobile", "resnet20", "shuffle", "grouped", "ds-cnn"])
def test_repair_brings_outputs_nearer(name: str) -> None:
    held = nets.feeds_of(nets.NETS[name][1], 9)[-1]
    errors = {}
    for repair in ("none", "least_squares"):
        model, small, change = reduced(name, share=0.5, repair=repair)
        wanted = model.run(held)["y"]
        errors[repair] = float(np.square(small.run(held)["y"] - wanted).mean())
        assert (change.details["refitted"] > 0) == (repair != "none")
    assert errors["least_squares"] < 0.8 * errors["none"]


def test_repair_of_one_layer_is_the_least_squares_solution() -> None:
    """Conv without bias before BatchNorm: weight and moved running mean are what lstsq finds for patches and a one."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
    model = nets.model_of(module, (2, 6, 6))
    batches = nets.feeds_of((2, 6, 6), 2, 16)
    small, _ = Channels(share=0.5, ridge=1e-9).apply(model, context(model, batches))
    x = torch.cat([torch.from_numpy(feed["x"]) for feed in batches])
    with torch.no_grad():
        hidden = small.module[1](small.module[0](x))
        patches = torch.nn.functional.unfold(hidden, 3, padding=1).movedim(1, 2).flatten(0, 1)
        target = module[2](module[1](module[0](x))).permute(0, 2, 3, 1).flatten(0, 2)
    design = np.concatenate([patches.numpy(), np.ones((len(patches), 1))], 1)
    wanted = np.linalg.lstsq(design, target.numpy(), rcond=None)[0]
    np.testing.assert_allclose(small.module[2].weight.detach().flatten(1).numpy(), wanted[:-1].T, atol=1e-3)
    moved = module[3].running_mean - small.module[3].running_mean
    np.testing.assert_allclose(moved.numpy(), wanted[-1], atol=1e-3)


def test_options_that_cannot_be_are_one_error() -> None:
    for options in (
        {"share": 1.0},
        {"share": -0.1},
        {"shares": 0.5},
        {"importance": "magic"},
        {"minimum": 0},
        {"multiple_of": 0},
        {"allocation": "owl"},
        {"ridge": 0},
    ):
        with pytest.raises(RecipeError):
            create("reduce step", "channels", options, "test")
    model = nets.net("mobile")
    with pytest.raises(RecipeError, match="share is 0"):
        Channels(share=0).check(model)
    with pytest.raises(RecipeError, match="matches no layer"):
        Channels(exclude=("stm.*",)).check(model)


def test_models_that_cannot_lose_channels_are_one_error() -> None:
    with pytest.raises(ModelError, match="no convolution or Linear"):
        Channels().check(nets.model_of(nn.ReLU(), (3,)))
    single = nets.model_of(nn.Sequential(nn.Linear(3, 4)), (3,), examples={"x": np.ones((2, 3), np.float32)})
    with pytest.raises(ModelError, match=r"0 \(they are an output of the model\)"):
        Channels().check(single)
    plain = nets.model_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,))
    with pytest.raises(ModelError, match="pass no BatchNorm"):
        Channels(importance="bn_scale").apply(plain, context(plain, nets.feeds_of((3,), 1, 80)))

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) if float(x.sum()) > 0 else x

    model = nets.model_of(Branching(), (3, 4, 4))
    with pytest.raises(ModelError, match="cannot trace"):
        Channels().apply(model, context(model, nets.feeds_of((3, 4, 4))))


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_nan_and_too_little_data_are_one_error_and_the_model_is_untouched(importance: str) -> None:
    model = nets.net("mobile")
    before = copy.deepcopy(model.module.state_dict())
    step = Channels(importance=importance)
    broken = nets.feeds_of((3, 8, 8))
    broken[1]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        step.apply(model, context(model, broken))
    broken[0]["x"][0] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        step.apply(model, context(model, broken))
    with pytest.raises(DataError, match="no calibration data"):
        step.apply(model, context(model, []))
    with pytest.raises(DataError, match="too few"):
        step.apply(model, context(model, nets.feeds_of((3, 8, 8), 1, 2)))
    assert all(torch.equal(before[key], value) for key, value in model.module.state_dict().items())


def test_sizes_written_into_forward_leave_their_layers_alone() -> None:
    model = nets.model_of(nets.LeNet(), (3, 14, 14))
    small, change = Channels(share=0.5).apply(model, context(model, nets.feeds_of((3, 14, 14))))
    assert small.module.two.out_channels == 16
    assert "does not run" in change.details["left_alone"]["two"]
    assert (small.module.three.out_features, small.module.one.out_channels) == (10, 5)


def resnet(kind: str, head: bool) -> Model:
    from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[2, 2], layer_type=kind, num_labels=4)
    made: Any = (ResNetForImageClassification if head else ResNetModel)(config)
    output = "logits" if head else "last_hidden_state"
    return dataclasses.replace(
        nets.model_of(made, (3, 32, 32), axes={}),
        input_names=("pixel_values",),
        output_names=(output,),
        axes={"pixel_values": ("batch", None, None, None), output: ("batch", None)},
        task="classification" if head else "generic",
        is_transformers=True,
    )


def pixels(batches: int = 3, size: int = 24) -> list[Feed]:
    return [{"pixel_values": feed["x"]} for feed in nets.feeds_of((3, 32, 32), batches, size)]


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("head", [True, False])
def test_resnet_of_transformers(kind: str, head: bool, tmp_path: Path) -> None:
    model = resnet(kind, head)
    small, change = Channels(share=0.5).apply(model, context(model, pixels()))
    said = change.details["removed"]
    assert all(value.split(" of ")[0] == str(int(value.split(" of ")[1]) // 2) for value in said.values())
    body = small.module.resnet if head else small.module
    assert body.embedder.embedder.convolution.out_channels == 4
    assert body.encoder.stages[0].layers[0].shortcut.convolution.out_channels == 8
    last = body.encoder.stages[1].layers[1].layer[-1].convolution
    assert last.out_channels == (12 if head else 24)  # without a head these are the outputs
    first = small.run(pixels(1)[0])
    loading.save(small, tmp_path / "saved")
    again = loading.load_reduced(tmp_path / "saved", model)
    for key, value in again.run(pixels(1)[0]).items():
        np.testing.assert_array_equal(value, first[key])
    assert again.parameters() < model.parameters()


@pytest.mark.parametrize("name", ["mobilenet_v2", "convnext", "regnet", "segformer", "mobilevit"])
def test_other_vision_families(name: str, tmp_path: Path) -> None:
    """What is found in architectures nobody looked at: it shrinks, is proven, and loads again."""
    import transformers

    torch.manual_seed(0)
    config, kind = {
        "mobilenet_v2": (
            transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=32, num_labels=3, min_depth=8),
            transformers.MobileNetV2ForImageClassification,
        ),
        "convnext": (
            transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3, image_size=32),
            transformers.ConvNextForImageClassification,
        ),
        "regnet": (
            transformers.RegNetConfig(
                embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2], groups_width=8, layer_type="y", num_labels=3
            ),
            transformers.RegNetForImageClassification,
        ),
        "segformer": (
            transformers.SegformerConfig(
                num_encoder_blocks=2,
                depths=[1, 1],
                sr_ratios=[2, 1],
                hidden_sizes=[8, 16],
                patch_sizes=[7, 3],
                strides=[4, 2],
                num_attention_heads=[1, 2],
                mlp_ratios=[2, 2],
                num_labels=3,
            ),
            transformers.SegformerForImageClassification,
        ),
        "mobilevit": (
            transformers.MobileViTConfig(
                image_size=64,
                hidden_sizes=[12, 16, 20],
                neck_hidden_sizes=[8, 8, 12, 12, 16, 16, 32],
                num_attention_heads=2,
                num_labels=3,
            ),
            transformers.MobileViTForImageClassification,
        ),
    }[name]
    size = 64 if name == "mobilevit" else 32
    model = dataclasses.replace(resnet("basic", True), module=kind(config).eval())
    batches = [{"pixel_values": feed["x"]} for feed in nets.feeds_of((3, size, size), 2, 32)]
    small, change = Channels(share=0.5, importance="magnitude").apply(model, context(model, batches))
    print(change.why)
    assert small.parameters() < 0.9 * model.parameters()
    loading.save(small, tmp_path / "saved")
    again = loading.load_reduced(tmp_path / "saved", model)
    np.testing.assert_array_equal(again.run(batches[0])["logits"], small.run(batches[0])["logits"])
