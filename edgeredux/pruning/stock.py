"""Letting a transformers config say the reduced sizes, so that stock transformers loads the model.

A change of the config is taken only when the stock module built from it (on the meta device: no memory) differs from
the reduced one in fewer shapes and numbers than before, and in no other. What no config can say stays for
edgeredux_shapes.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch

from edgeredux import shapes
from edgeredux.pruning.groups import Group, find

# Widths that a config says apart from hidden_size; where they are the same, they must stay the same.
_ALSO_WIDTH = ("word_embed_proj_dim", "embedding_size")
# What modules call the width where they keep it for information, and sizes that a cut sets right.
WIDTH_NAMES = ("hidden_size", "embed_dim", "dim")
_SIZES = (
    *WIDTH_NAMES,
    "in_features",
    "out_features",
    "embedding_dim",
    "normalized_shape",
    "in_channels",
    "out_channels",
)


def describe_groups(module: torch.nn.Module) -> None:
    """Let the config say FFN widths and head counts where it can and they are the same in every layer."""
    if getattr(module, "config", None) is None:
        return
    groups = find(module)
    for kind, part in (("ffn", ""), ("ffn", "encoder."), ("ffn", "decoder."), ("heads", "")):
        members = [group for group in groups if group.kind == kind and part in f".{group.reader}"]
        if len({(group.units, group.heads_per_unit, group.head_size) for group in members}) == 1:
            say(module, _widths(members[0], part) if kind == "ffn" else _heads(members[0]))


def _widths(group: Group, part: str) -> list[dict[str, int]]:
    names = ("intermediate_size", "hidden_dim", "ffn_dim", "d_ff", "n_inner") if not part else ()
    return [{name: group.units} for name in (*names, *((f"{part[:-1]}_ffn_dim",) if part else ()))]


def _heads(group: Group) -> list[dict[str, int]]:
    heads = {"num_attention_heads": group.units * group.heads_per_unit, "num_key_value_heads": group.units}
    return [heads, {**heads, "head_dim": group.head_size}]


def width_change(module: torch.nn.Module, width: int) -> dict[str, int] | None:
    """The change of the config that says this hidden width and nothing else; None where the family cannot say it.

    Found on the meta device with twice the width, which every config takes: whatever else moves with it (head size,
    embedding scale, rotary frequencies) would be wrong in a model whose stream alone got narrower.
    """
    config: Any = module.config
    now = config.hidden_size
    names = ("hidden_size", *(name for name in _ALSO_WIDTH if getattr(config, name, None) == now))
    heads = {group.head_size for group in find(module) if group.kind == "heads"}
    before = shapes.describe(shapes.stock(module, config))
    for more in ({}, *({"head_dim": size} for size in heads if len(heads) == 1)):
        try:
            twice = shapes.stock(module, changed(config, dict.fromkeys(names, 2 * now) | more))
        except (ValueError, ZeroDivisionError, AssertionError):  # what a class says to sizes that it does not take
            continue
        if _only_width(before, shapes.describe(twice), now):
            return dict.fromkeys(names, width) | more
    return None


def _only_width(before: Mapping[str, Any], after: Mapping[str, Any], width: int) -> bool:
    """Whether nothing differs but sizes of `width` that are twice as large."""

    def moved(old: Any, new: Any) -> bool:
        if isinstance(old, list):
            return len(old) == len(new) and all(a == b or moved(a, b) for a, b in zip(old, new, strict=True))
        return bool(old == width and new == 2 * width)

    if any(set(before[kind]) != set(after[kind]) for kind in before):
        return False
    return all(
        value == after[kind][name]
        or (moved(value, after[kind][name]) and (kind == "shapes" or name.rpartition(".")[2] in _SIZES))
        for kind in before
        for name, value in before[kind].items()
    )


def follow_width(module: torch.nn.Module, width: int) -> None:
    """Set numbers that modules keep of the width for information, by the names of WIDTH_NAMES, to the config's."""
    config: Any = module.config
    stock = shapes.describe(shapes.stock(module, config))["attributes"]
    for place, value in shapes.describe(module)["attributes"].items():
        owner, _, key = place.rpartition(".")
        if value == width and stock.get(place) == config.hidden_size and key in WIDTH_NAMES:
            setattr(module.get_submodule(owner), key, config.hidden_size)


def changed(config: Any, change: Mapping[str, Any]) -> Any:
    """A copy of the config with these values."""
    trial = deepcopy(config)
    for name, value in change.items():
        setattr(trial, name, value)
    return trial


def say(module: torch.nn.Module, changes: Iterable[Mapping[str, Any]]) -> bool:
    """Make the first of `changes` that brings the stock module nearer; False when none does.

    Of a change, names that the config does not have are left out, but for head_dim, which many classes read if there.
    """
    config: Any = module.config
    now = unsaid(module, config)
    for change in changes:
        known = {name: value for name, value in change.items() if hasattr(config, name) or name == "head_dim"}
        if not now or not known or set(known) == {"head_dim"}:
            continue
        try:
            left = unsaid(module, changed(config, known))
        except (ValueError, ZeroDivisionError, AssertionError):  # what a class says to sizes that it does not take
            continue
        if left < now:
            set_everywhere(module, known)
            return True
    return False


def unsaid(module: torch.nn.Module, config: Any) -> set[str]:
    """Names of the shapes and numbers of `module` that its class does not give it with this config."""
    said = shapes.differences(module, shapes.stock(module, config))
    return set() if said is None else {*said["shapes"], *said["attributes"]}


def set_everywhere(module: torch.nn.Module, change: Mapping[str, Any]) -> None:
    """Set the values in the config, and in the copies of it that parts of the module hold."""
    root: Any = module.config
    for name, value in change.items():
        before = getattr(root, name, None)
        for config in {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}.values():
            if config is root or (type(config) is type(root) and getattr(config, name, None) == before):
                setattr(config, name, value)
