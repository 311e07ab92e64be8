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
        trial = deepcopy(config)
        for name, value in known.items():
            setattr(trial, name, value)
        try:
            left = unsaid(module, trial)
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
