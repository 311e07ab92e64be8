"""`edgeredux.sparse_train` on any nn.Module and loss: one line, exact zeros, the input untouched, clear errors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_models import tiny_llama
from torch.nn import functional as F

import edgeredux
from edgeredux.errors import DataError, RecipeError


def net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1, stride=2),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 24),
        torch.nn.ReLU(),
        torch.nn.Linear(24, 4),
    )


def quadrants(count: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright spot in one of four quadrants, and which."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, count)
    pictures = random.standard_normal((count, 1, 8, 8)).astype(np.float32) * 0.5
    for place, label in enumerate(labels):
        pictures[place, 0, 1 + 4 * (label // 2), 1 + 4 * (label % 2)] += 4
    return torch.from_numpy(pictures), torch.from_numpy(labels)


def zeros(module: torch.nn.Module) -> tuple[int, int]:
    weights = [part.weight for part in module.modules() if isinstance(part, (torch.nn.Conv2d, torch.nn.Linear))]
    return sum(int((value == 0).sum()) for value in weights), sum(value.numel() for value in weights)


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_learns_from_scratch_with_exact_zeros(method: str) -> None:
    module, data = net(), quadrants()
    before = copy.deepcopy(module.state_dict())
    options = {method: {} if method == "static" else {"update_every": 10}}
    trained = edgeredux.sparse_train(
        module, data=data, loss=F.cross_entropy, method=options, zeros=0.8, steps=150, learning_rate=0.01
    )
    gone, total = zeros(trained)
    assert total == 72 + 3072 + 96
    # Never fewer; a few of the grown weights may still be 0, where the gradient of a dead unit is.
    assert 8 * total // 10 <= gone <= 8 * total // 10 + 30
    pictures, labels = quadrants(512)
    with torch.no_grad():
        accuracy = float((trained(pictures).argmax(1) == labels)[256:].float().mean())  # the second half is new
    assert accuracy > 0.9
    assert not trained.training
    assert bool(trained[1].running_mean.any())  # batch normalisation learnt its statistics
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_zeros_of_before_stay_in_excluded_layers_alone() -> None:
    """Half of two layers is zero; in one the weights come back under a weak penalty, the other is left out."""
    module = net()
    with torch.no_grad():
        for place in (4, 6):
            module[place].weight[:, ::2] = 0
    trained = edgeredux.sparse_train(
        module,
        data=quadrants(),
        loss=F.cross_entropy,
        method={"l1": {"strength": 1e-6}},
        steps=40,
        exclude=["0", "6"],
    )
    assert int((trained[4].weight == 0).sum()) < 1000  # of 1536; those of dead inputs have no gradient
    assert not bool(trained[6].weight[:, ::2].any())
    assert bool((trained[6].weight[:, 1::2] != 0).all())


def test_same_seed_same_bytes() -> None:
    runs = [
        edgeredux.sparse_train(
            net(), data=quadrants(), loss=F.cross_entropy, method={"set": {"update_every": 5}}, steps=20, seed=seed
        )
        for seed in (1, 1, 2)
    ]
    first, second, third = ([value.detach().numpy().tobytes() for value in run.parameters()] for run in runs)
    assert first == second
    assert first != third
    module, state = net(), torch.get_rng_state()
    edgeredux.sparse_train(module, data=quadrants(), loss=F.cross_entropy, steps=1)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers go on as if nothing had been drawn


def test_a_decoder_by_its_own_loss() -> None:
    module = tiny_llama().module
    tokens = np.tile(np.arange(1, 13), (32, 1))
    data = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "labels": tokens}
    trained = edgeredux.sparse_train(module, data=data, zeros=0.5, steps=60, learning_rate=0.01)
    given = {name: torch.from_numpy(value) for name, value in data.items()}
    with torch.no_grad():
        assert float(trained(**given).loss) < 0.5 * float(module(**given).loss)
    assert bool((trained.model.layers[0].mlp.up_proj.weight == 0).any())
    assert not bool((trained.lm_head.weight == 0).any())


def test_padding_of_the_data_is_left_alone() -> None:
    """Rows of different lengths, padded by whoever made them, reach the module as they are."""
    seen = []

    class Look(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = torch.nn.Linear(1, 40)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(input_ids.shape))
            return self.part(attention_mask[..., None].float())

    mask = np.tri(8, 6, dtype=np.int64)
    edgeredux.sparse_train(
        Look(),
        data={"input_ids": mask * 7, "attention_mask": mask},
        loss=lambda outputs, batch: (outputs.mean(-1) - batch["input_ids"]).square().mean(),
        zeros=0.5,
        steps=3,
        batch_size=4,
    )
    assert seen == [(4, 6)] * 3


def test_a_loader_of_batches_is_the_same_data() -> None:
    data = quadrants(48)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=20)
    runs = [edgeredux.sparse_train(net(), data=given, loss=F.cross_entropy, steps=3) for given in (data, loader)]
    for first, second in zip(*(run.parameters() for run in runs), strict=True):
        assert torch.equal(first, second)


def test_clear_errors() -> None:
    data = quadrants(16)
    with pytest.raises(RecipeError, match=r"unknown method 'rigel'; did you mean 'rigl'\? Allowed: gradual"):
        edgeredux.sparse_train(net(), data=data, loss=F.cross_entropy, method="rigel")
    with pytest.raises(RecipeError, match="unknown option 'zeros'"):
        edgeredux.sparse_train(net(), data=data, loss=F.cross_entropy, method="l1", zeros=0.9)
    with pytest.raises(DataError, match="need a loss"):
        edgeredux.sparse_train(net(), data=data)
    with pytest.raises(DataError, match="different or no samples"):
        edgeredux.sparse_train(net(), data=(data[0], data[1][:3]), loss=F.cross_entropy)
    with pytest.raises(DataError, match="'inputs' holds NaN"):
        edgeredux.sparse_train(net(), data=(data[0] * float("nan"), data[1]), loss=F.cross_entropy)
