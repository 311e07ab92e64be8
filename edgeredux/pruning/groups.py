"""Which matrices belong together: FFN neurons and attention heads, found by shape where shape says it, else by name.

An FFN is two or three Linears of one parent whose last reads what the others make; one twice as wide as what is read
is a fused gate. An attention block is found by the names that the field gives its projections, apart or fused in one
matrix, and by the head size its module states. Removing a neuron or a head takes rows of the writers and the same
columns of the reader; proof.py shows on real inputs that nothing else is connected with them.
"""

from __future__ import annotations

import inspect
import re
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from edgeredux.pruning.places import LINEAR, Place, inputs, outputs, sizes, take, units

# (query, key, value, reader, the module that knows its head size), relative to a common parent.
_APART = (
    ("self.query", "self.key", "self.value", "output.dense", "self"),
    ("attention.query", "attention.key", "attention.value", "output.dense", "attention"),
    ("q_lin", "k_lin", "v_lin", "out_lin", ""),
    ("q_proj", "k_proj", "v_proj", "o_proj", ""),
    ("q_proj", "k_proj", "v_proj", "out_proj", ""),
    ("q_proj", "k_proj", "v_proj", "dense", ""),
    ("query", "key", "value", "dense", ""),
    ("q", "k", "v", "o", ""),
)
# (fused query-key-value, reader, order of its rows): all queries, then keys, then values; or head by head.
_FUSED: tuple[tuple[str, str, Literal["blocks", "heads"]], ...] = (
    ("c_attn", "c_proj", "blocks"),
    ("qkv_proj", "o_proj", "blocks"),
    ("Wqkv", "Wo", "blocks"),
    ("qkv", "proj", "blocks"),
    ("query_key_value", "dense", "heads"),
)
# An FFN whose two Linears have parents of their own.
_APART_FFN = ("intermediate.dense", "output.dense")
# What may stand between two Linears of a torch.nn.Sequential: each output depends on the same input alone.
_ELEMENTWISE = (
    torch.nn.ReLU,
    torch.nn.ReLU6,
    torch.nn.GELU,
    torch.nn.SiLU,
    torch.nn.Mish,
    torch.nn.Tanh,
    torch.nn.Sigmoid,
    torch.nn.ELU,
    torch.nn.LeakyReLU,
    torch.nn.Hardswish,
    torch.nn.Softplus,
    torch.nn.Identity,
    torch.nn.Dropout,
)
_HEAD_SIZES = ("attention_head_size", "head_dim", "attention_head_dim", "head_size", "key_value_proj_dim")
_HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
_HEAD_WIDTHS = ("all_head_size", "inner_dim", "split_size")


@dataclass(frozen=True)
class Group:
    """Coupled matrices. A unit is an FFN neuron, or the query heads of one KV head with it.

    `columns` [units, columns of a unit] are those of `reader`; `writers` maps each Linear that makes them to its rows,
    [units, rows of a unit]; `more` are other parameters with something for each unit. `owner` is the attention module.
    Groups of the same `tie` must lose the same units.
    """

    kind: Literal["ffn", "heads"]
    reader: str
    columns: torch.Tensor = field(repr=False)
    writers: dict[str, torch.Tensor] = field(repr=False)
    more: tuple[Place, ...] = field(default=(), repr=False)
    owner: str = ""
    heads_per_unit: int = 0
    head_size: int = 0
    tie: str = ""

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.columns)

    @property
    def width(self) -> int:
        """Columns of the reader that a unit has."""
        return self.columns.shape[1]


def find(module: torch.nn.Module) -> list[Group]:
    """All groups in the order the model defines them. Empty when nothing of a known structure is there."""
    parts = {name: part for name, part in module.named_modules() if isinstance(part, LINEAR)}
    found: list[Group] = []
    for prefix in [name for name, _ in module.named_modules()]:
        group = _apart(module, parts, prefix) or _fused(module, parts, prefix)
        if group is not None and group.reader not in {other.reader for other in found}:
            found.append(group)
    taken = {name for group in found for name in (*group.writers, group.reader)}
    blocks = any(isinstance(part, torch.nn.ModuleList) for part in module.modules())
    for prefix, part in module.named_modules():
        found += _chain(part, prefix) if isinstance(part, torch.nn.Sequential) else []
        inside = not hasattr(module, "config") or not blocks or bool(re.search(r"(^|\.)\d+(\.|$)", prefix))
        found += _ffn(parts, prefix, taken) if inside and not isinstance(part, torch.nn.Sequential) else []
    order = list(parts)
    return sorted(found, key=lambda group: order.index(group.reader))


def _ffn(parts: dict[str, Any], prefix: str, taken: set[str]) -> list[Group]:
    dot = f"{prefix}." if prefix else ""
    apart = [dot + name for name in _APART_FFN]
    if all(name in parts and name not in taken for name in apart):
        names = apart
    else:
        names = [name for name in parts if name.rpartition(".")[0] == prefix and name not in taken]
    if len(names) not in (2, 3):
        return []
    *writers, reader = names
    made, read = [sizes(parts[name]) for name in writers], sizes(parts[reader])
    if len({given for _, given in made}) > 1 or made[0][1] != read[0]:
        return []  # a writer reads something else, or the last does not lead back to where the first came from
    if all(out == read[1] for out, _ in made):
        rows = units(read[1], 1)
    elif len(writers) == 1 and made[0][0] == 2 * read[1]:
        rows = torch.cat([units(read[1], 1), units(read[1], 1, read[1])], 1)
    else:
        return []
    return [Group("ffn", reader, units(read[1], 1), dict.fromkeys(writers, rows))]


def _chain(sequence: torch.nn.Sequential, prefix: str) -> list[Group]:
    """Neighbouring Linears of a Sequential with nothing but elementwise functions between them."""
    dot = f"{prefix}." if prefix else ""
    found = []
    last: tuple[str, torch.nn.Linear] | None = None
    for name, part in sequence.named_children():
        if isinstance(part, torch.nn.Linear):
            if last is not None and last[1].out_features == part.in_features:
                every = units(part.in_features, 1)
                found.append(Group("ffn", dot + name, every, {dot + last[0]: every}))
            last = (name, part)
        elif not isinstance(part, _ELEMENTWISE):
            last = None
    return found


def _apart(module: torch.nn.Module, parts: dict[str, Any], prefix: str) -> Group | None:
    dot = f"{prefix}." if prefix else ""
    for *relative, inner in _APART:
        names = [dot + name for name in relative]
        if not all(name in parts for name in names):
            continue
        query, key, value, reader = names
        owner = dot + inner if inner else prefix
        size = _head_size(module.get_submodule(owner))
        heads_wide, made = sizes(parts[query])[0], sizes(parts[key])[0]
        if size <= 0 or made % size or heads_wide % made or sizes(parts[value])[0] != made:
            return None
        if sizes(parts[reader])[1] != heads_wide:
            return None
        count, per = made // size, heads_wide // made
        wide, narrow = units(count, per * size), units(count, size)
        return _heads(module, reader, wide, {query: wide, key: narrow, value: narrow}, owner, per, size)
    return None


def _fused(module: torch.nn.Module, parts: dict[str, Any], prefix: str) -> Group | None:
    dot = f"{prefix}." if prefix else ""
    for relative, relative_reader, order in _FUSED:
        name, reader = dot + relative, dot + relative_reader
        if name not in parts or reader not in parts:
            continue
        size, made, read = _head_size(module.get_submodule(prefix)), sizes(parts[name])[0], sizes(parts[reader])[1]
        key_values = (made - read) // 2
        if size <= 0 or key_values <= 0 or (made - read) % 2 or key_values % size or read % key_values:
            return None
        count, per = key_values // size, read // key_values
        if order == "heads":
            if per != 1:
                return None
            rows = units(count, 3 * size)
        else:
            query, key = units(count, per * size), units(count, size, read)
            rows = torch.cat([query, key, key + key_values], 1)
        return _heads(module, reader, units(count, per * size), {name: rows}, prefix, per, size)
    return None


def _heads(
    module: torch.nn.Module,
    reader: str,
    columns: torch.Tensor,
    writers: dict[str, torch.Tensor],
    owner: str,
    per: int,
    size: int,
) -> Group | None:
    part = module.get_submodule(owner)
    count = len(columns)
    dot = f"{owner}." if owner else ""
    if any(value.shape == (count * per * size,) for name, value in part.named_parameters() if "norm" in name):
        return None  # a norm over all heads together: a head cannot go without the others
    # Attention sinks: one number a query head.
    own = [name for name, value in part.named_parameters(recurse=False) if value.shape == (count * per,)]
    more = [Place(dot + name, 0, units(count, per)) for name in own]
    tie = ""
    if hasattr(part, "has_relative_attention_bias"):
        # T5 computes one bias [heads, query, key] in its first layer and hands it to all layers of the stack.
        tie = re.sub(r"\d+", "*", owner)
        bias = getattr(part, "relative_attention_bias", None)
        if isinstance(bias, torch.nn.Embedding):
            more.append(Place(f"{dot}relative_attention_bias.weight", 1, units(count, per)))
    return Group("heads", reader, columns, writers, tuple(more), owner, per, size, tie)


def _head_size(owner: torch.nn.Module) -> int:
    return next((int(value) for name in _HEAD_SIZES if isinstance(value := getattr(owner, name, None), int)), 0)


def places(module: torch.nn.Module, group: Group) -> list[Place]:
    """Everything that a unit of the group is, but for the reader's columns: see `inputs`."""
    found = [place for name, rows in group.writers.items() for place in outputs(module, name, rows)]
    return [*found, *group.more]


def remove(module: torch.nn.Module, group: Group, keep: torch.Tensor) -> None:
    """Keep only the units of `group` in `keep` (sorted numbers), in place; the modules' own counts follow."""
    take(module, [*places(module, group), inputs(module, group.reader, group.columns)], keep)
    if group.kind == "ffn":
        parent: Any = module.get_submodule(group.reader.rpartition(".")[0])
        if getattr(parent, "intermediate_size", None) == group.units:
            parent.intermediate_size = len(keep)
        return
    owner: Any = module.get_submodule(group.owner)
    heads = len(keep) * group.heads_per_unit
    said = dict.fromkeys(_HEAD_COUNTS, heads) | dict.fromkeys(_HEAD_WIDTHS, heads * group.head_size)
    for name, value in (said | {"num_key_value_heads": len(keep)}).items():
        if isinstance(getattr(owner, name, None), int):
            setattr(owner, name, value)
    # Phi-3 reads its own head count from the config that all layers share: this layer gets its own.
    code = inspect.unwrap(type(owner).forward).__code__.co_names
    if "config" in code and "num_attention_heads" in code and owner.config.num_attention_heads != heads:
        owner.config = deepcopy(owner.config)
        owner.config.num_attention_heads = heads
