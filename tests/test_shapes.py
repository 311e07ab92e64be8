"""Shapes of reduced modules: any parameter, buffer and whole-number attribute comes back, nothing else can be set."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from edgeredux import shapes
from edgeredux.errors import ModelError


def net() -> torch.nn.Sequential:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.Conv2d(8, 8, 3, groups=8),
        torch.nn.GroupNorm(2, 8),
        torch.nn.LayerNorm(5),
        torch.nn.Linear(5, 4),
        torch.nn.Linear(5, 4),
    )
    net[6].weight = net[5].weight
    return net


def narrow() -> torch.nn.Sequential:
    small = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3),
        torch.nn.BatchNorm2d(6),
        torch.nn.Conv2d(6, 6, 3, groups=6),
        torch.nn.GroupNorm(1, 6),
        torch.nn.LayerNorm(4),
        torch.nn.Linear(4, 3),
        torch.nn.Linear(4, 3),
    )
    small[6].weight = small[5].weight
    return small


def test_every_shape_and_attribute_comes_back(tmp_path: Path) -> None:
    small, wide = narrow(), net()
    shapes.write(tmp_path, shapes.describe(small))
    said = shapes.read(tmp_path, "net")
    assert said is not None
    shapes.resize(wide, said, "net")
    wide.load_state_dict(small.state_dict())
    assert wide[2].groups == 6
    assert wide[3].num_groups == 1
    assert wide[4].normalized_shape == (4,)
    assert wide[1].num_features == 6
    assert wide[5].weight is wide[6].weight
    assert [repr(part) for part in wide] == [repr(part) for part in small]
    assert shapes.differences(wide, small) is None


def test_differences_name_only_what_differs() -> None:
    changed = copy.deepcopy(net())
    changed[5] = torch.nn.Linear(5, 2)
    assert shapes.differences(changed, net()) == {
        "shapes": {"5.weight": [2, 5], "5.bias": [2]},
        "attributes": {"5.out_features": 2},
    }


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"shapes": {"9.weight": [2]}, "attributes": {}}, "9.weight"),
        ({"shapes": {"0.weight": [2, 3]}, "attributes": {}}, "0.weight"),
        ({"shapes": {}, "attributes": {"0.nothing": 1}}, "0.nothing"),
        ({"shapes": {}, "attributes": {"0.training": 1}}, "0.training"),
        ({"shapes": {}, "attributes": {"0.kernel_size": [1, 2, 3]}}, "0.kernel_size"),
        ({"shapes": {}, "attributes": {"9.groups": 1}}, "9.groups"),
        ({"shapes": {"0.weight": [-1, 3, 3, 3]}, "attributes": {}}, "damaged"),
        ({"shapes": {"0.weight": 4}, "attributes": {}}, "damaged"),
        ({"shapes": {}, "attributes": {"0.groups": "rm"}}, "damaged"),
        ({"shapes": {}}, "damaged"),
        ([], "damaged"),
    ],
)
def test_what_the_module_does_not_have_is_an_error(said: object, message: str, tmp_path: Path) -> None:
    (tmp_path / shapes.SHAPES_FILE).write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        shapes.resize(net(), shapes.read(tmp_path, "net") or {}, "net")
