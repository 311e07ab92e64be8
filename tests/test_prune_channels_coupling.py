"""Which channels go together: the cut net is the dense one with those channels masked, in every architecture."""

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
from torch.nn import functional as F

from edgeredux.model import Model
from edgeredux.pruning.coupling import Coupling, Labels
from edgeredux.pruning.coupling_cut import cut, prove
from edgeredux.pruning.coupling_trace import coupling, trace


def traced(model: Model, shape: tuple[int, ...]) -> tuple[Any, Coupling]:
    graph = trace(model, nets.feeds_of(shape, 1, 4)[0])
    return graph, coupling(model, graph)


def masked_outputs(model: Model, found: Coupling, gone: Labels, x: torch.Tensor) -> list[torch.Tensor]:
    """The dense module with a hook before each layer that mixes channels, which sets the removed ones to zero there."""

    def mask(port: Any) -> Any:
        silent = torch.from_numpy(np.isin(port.labels, gone))

        def hook(part: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            axis = given[0].dim() - 1 - len(getattr(part, "kernel_size", ()))
            return (given[0].movedim(axis, -1).masked_fill(silent, 0.0).movedim(-1, axis),)

        return hook

    handles = [model.module.get_submodule(p.module).register_forward_pre_hook(mask(p)) for p in found.readers]
    with torch.no_grad():
        made = list(model.forward({"x": x}).values())
    for handle in handles:
        handle.remove()
    return made


@pytest.mark.parametrize("name", [name for name in nets.NETS if name not in ("features", "convnext")])
@pytest.mark.parametrize("which", [slice(0, None, 2), slice(0, 1), slice(1, None)])
def test_cut_net_is_the_dense_one_masked(name: str, which: slice) -> None:
    model, shape = nets.net(name), nets.NETS[name][1]
    _, found = traced(model, shape)
    gone = np.concatenate([group.units[which] for group in found.groups if len(group.units) > 1])
    x = torch.from_numpy(nets.feeds_of(shape, 1, 5)[0]["x"])
    wanted = masked_outputs(model, found, gone, x)
    cut(model.module, found, gone)
    with torch.no_grad():
        made = list(model.forward({"x": x}).values())
    for a, b in zip(made, wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize("name", nets.NETS)
def test_proof_accepts_what_is_right(name: str) -> None:
    model, shape = nets.net(name), nets.NETS[name][1]
    graph, found = traced(model, shape)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    assert prove(model, graph, found, np.concatenate([group.units[::2] for group in found.groups])) is None
    assert all(torch.equal(before[key], value) for key, value in model.module.state_dict().items())


def test_units_and_groups_of_known_nets() -> None:
    def sizes(name: str) -> dict[str, int]:
        _, found = traced(nets.net(name), nets.NETS[name][1])
        return {group.name: len(group.units) for group in found.groups}

    assert sizes("mobile") == {
        "stem.0, project.0": 12,
        "expand.0, depthwise.0, excite": 24,
        "squeeze": 6,
        "last.0": 24,
    }
    # Positions 0..7 of the first stream, which the padding puts at 4..11 of the second and at 12..19 of the third.
    stream = "conv1, layer1.0.conv2, layer1.1.conv2 and 4 more"
    inner = {f"layer{stage}.{block}.conv1": 4 << stage for stage in (1, 2, 3) for block in (0, 1)}
    found = sizes("resnet20")
    assert found.pop(stream) == 8
    third = {name: size for name, size in found.items() if name not in inner}
    assert third == {}
    assert found == inner
    assert sizes("u-net") == {"down": 4, "deep": 12, "up": 6, "mix": 10}  # down: pairs, the groups of its GroupNorm
    assert sizes("grouped") == {
        "one.0": 8,  # 16 in two groups: pairs
        "few": 4,
        "two, many": 8,  # eight groups of two inputs and one output
        "three": 8,
        "up_few": 6,
        "four, up_many": 4,
    }
    assert sizes("signal") == {
        "one": 8,
        "gate": 6,
        "hidden": 8,
        "left, right": 7,
    }  # the first two of hidden are cut out
    assert sizes("upscale") == {"frames, body": 8, "up": 6}


def test_layers_left_alone_say_why() -> None:
    _, found = traced(nets.net("u-net"), (3, 8, 8))
    assert found.left_alone == {"out": "they are an output of the model"}

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv1d(4, 4, 1) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.b(self.a(x).cumsum(1))
            x = self.c(torch.einsum("bct,cd->bdt", x, torch.ones(4, 4)))
            return self.d(x[:, :2].repeat_interleave(2, 1))

    _, found = traced(nets.model_of(Odd(), (4, 6)), (4, 6))
    assert found.groups == ()
    assert found.left_alone["a"] == "aten.cumsum works across them"
    assert "no rule for aten.einsum" in found.left_alone["b"]
    assert found.left_alone["c"] == "slice_1 cuts at a fixed position"


def test_sizes_written_into_forward_are_found_out() -> None:
    model = nets.model_of(nets.LeNet(), (3, 14, 14))
    graph, found = traced(model, (3, 14, 14))
    answers = {group.name: prove(model, graph, found, group.units[:1]) for group in found.groups}
    assert answers.pop("three") is None
    assert set(answers) == {"one", "two"}
    assert "does not run" in str(answers["two"])
    assert answers["one"] is None  # its units are positions 3 to 5, behind the cut
    assert [len(group.units) for group in found.groups if group.name == "one"] == [3]
    assert found.left_alone["cut"] == "slice_1 cuts at a fixed position"


def test_a_wrong_coupling_is_refused() -> None:
    """The proof sees a cut that takes channel i of one layer and i + 1 of what reads it."""
    model = nets.net("mobile")
    graph, found = traced(model, (3, 8, 8))
    group = next(group for group in found.groups if group.name == "last.0")
    for place in (("head.weight", 1), ("last.1.bias", 0)):
        wrong = {**found.places, place: np.roll(found.places[place], 1)}
        broken = Coupling(**{**vars(found), "places": wrong})
        assert "differs" in str(prove(model, graph, broken, group.units[::2]))


def test_layer_norm_takes_statistics_of_what_is_left() -> None:
    model = nets.net("features")
    _, found = traced(model, (6,))
    group = next(group for group in found.groups if group.name == "a, c")
    x = torch.randn(5, 6)
    dense = model.module
    with torch.no_grad():
        keep = torch.arange(16) % 3 > 0
        hidden = dense.a(x).relu()
        inner = dense.c(dense.b(hidden.masked_fill(~keep, 0.0)).relu()) + hidden
        normed = F.layer_norm(inner[:, keep], (int(keep.sum()),), dense.norm.weight[keep], dense.norm.bias[keep])
        wanted = dense.f(
            (normed @ dense.d.weight[:, keep].T + dense.d.bias)
            * torch.sigmoid(normed @ dense.e.weight[:, keep].T + dense.e.bias)
        )
        cut(dense, found, group.units[::3])
        assert dense.norm.normalized_shape == (10,)
        np.testing.assert_allclose(dense(x).numpy(), wanted.numpy(), atol=1e-5)


def test_tied_weights_stay_tied_and_modules_that_run_twice_are_cut_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 1) for _ in range(4))
            self.inp, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.c(self.c(self.inp(x).relu()).relu()).relu()
            return self.out(self.d(self.a(x).relu() + self.b(x).relu()))

    model = nets.model_of(Twice(), (3, 4, 4))
    graph, found = traced(model, (3, 4, 4))
    gone = np.concatenate([group.units[:3] for group in found.groups])
    assert prove(model, graph, found, gone) is None
    cut(model.module, found, gone)
    assert model.module.a.weight is model.module.b.weight
    assert model.module.c.weight.shape == (5, 5, 1, 1)


def test_attention_and_recurrence_are_left_alone_beside_what_can_go() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.memory = nn.GRU(8, 8, batch_first=True)
            self.out = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.narrow(self.wide(x).relu())
            x = x + self.attention(x, x, x, need_weights=False)[0]
            return self.out(self.memory(x)[0])

    model = nets.model_of(Mixed(), (5, 8))
    graph, found = traced(model, (5, 8))
    assert [(group.name, len(group.units)) for group in found.groups] == [("wide", 16)]
    assert prove(model, graph, found, found.groups[0].units[::2]) is None


@pytest.mark.parametrize(("file", "blocks"), [("resnet20-12fca82f.th", 3), ("resnet56-4bfd9763.th", 9)])
def test_trained_cifar_resnets(file: str, blocks: int, shared_data: Path) -> None:
    """The state dicts of He et al.'s nets (option A shortcuts): 16 coupled stream channels and every inner layer."""
    saved = torch.load(shared_data / "model-resnet-cifar10" / file, weights_only=True, map_location="cpu")["state_dict"]
    net = nets.ResNet20(blocks)
    net.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
    model = dataclasses.replace(nets.net("resnet20"), module=net.eval())
    graph, found = traced(model, (3, 32, 32))
    sizes = sorted(len(group.units) for group in found.groups)
    assert sizes == sorted([16] + [16] * blocks + [32] * blocks + [64] * blocks)
    gone = np.concatenate([group.units[::2] for group in found.groups])
    assert prove(model, graph, found, gone) is None
    x = torch.from_numpy(nets.feeds_of((3, 32, 32), 1, 4)[0]["x"])
    wanted = masked_outputs(model, found, gone, x)[0]
    small = copy.deepcopy(net)
    cut(small, found, gone)
    with torch.no_grad():
        made = small(x)
    assert sum(value.numel() for value in small.parameters()) < 0.6 * sum(value.numel() for value in net.parameters())
    np.testing.assert_allclose(made.numpy(), wanted.numpy(), atol=1e-3 * float(wanted.abs().max()))


def test_the_linear_of_gpt2_and_residual_features() -> None:
    from transformers.pytorch_utils import Conv1D

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = Conv1D(24, 8), Conv1D(8, 24)
            nn.init.normal_(self.wide.bias)
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.last(x + self.narrow(F.gelu(self.wide(x))))

    model = nets.model_of(Block(), (5, 4))
    graph, found = traced(model, (5, 4))
    assert {group.name: len(group.units) for group in found.groups} == {"wide": 24, "first, narrow": 8}
    gone = np.concatenate([group.units[1::2] for group in found.groups])
    x = torch.randn(2, 5, 4)
    wanted = masked_outputs(model, found, gone, x)[0]
    assert prove(model, graph, found, gone) is None
    cut(model.module, found, gone)
    assert (model.module.wide.nf, model.module.wide.weight.shape) == (12, (4, 12))
    with torch.no_grad():
        np.testing.assert_allclose(model.module(x).numpy(), wanted.numpy(), atol=1e-5)
