"""Which Linear modules belong together: FFN neurons and attention heads, found by the names the field gives them.

An FFN group is the Linears whose output rows are the neurons (one, or gate and up) and the Linear that reads them. An
attention group is query, key and value with the Linear that reads the concatenated heads. Removing a neuron or a head
takes rows of the first and the same columns of the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# (writers, reader) relative to a common parent. BERT, ViT; DistilBERT; Llama, Qwen, Gemma, Mistral; OPT.
_FFN = (
    (("intermediate.dense",), "output.dense"),
    (("lin1",), "lin2"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("fc1",), "fc2"),
)
# (query, key, value, reader, the module that knows its head count)
_ATTENTION = (
    ("self.query", "self.key", "self.value", "output.dense", "self"),
    ("attention.query", "attention.key", "attention.value", "output.dense", "attention"),
    ("q_lin", "k_lin", "v_lin", "out_lin", ""),
    ("q_proj", "k_proj", "v_proj", "o_proj", ""),
    ("q_proj", "k_proj", "v_proj", "out_proj", ""),
)
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
_HEAD_SIZES = ("attention_head_size", "head_dim", "attention_head_dim")


@dataclass(frozen=True)
class Group:
    """Coupled Linears. A unit is `width` neighbouring columns of `reader`: an FFN neuron, or the heads of a KV group.

    `writers` maps each Linear whose rows go to the number of its rows per unit; `owner` is the attention module.
    """

    kind: str
    writers: dict[str, int]
    reader: str
    width: int
    units: int
    owner: str = ""
    heads_per_unit: int = 0


def linear_dict(module: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Every Linear by its name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)}


def find(module: torch.nn.Module) -> list[Group]:
    """All groups in the order the model runs them. Empty when nothing of a known structure is there."""
    linears = linear_dict(module)
    found: list[Group] = []
    for prefix, part in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        for query, key, value, reader, owner in _ATTENTION:
            names = [dot + name for name in (query, key, value, reader)]
            if all(name in linears for name in names):
                group = _attention(module, linears, names, dot + owner if owner else prefix)
                if group is not None:
                    found.append(group)
        for writers, reader in _FFN:
            names = [dot + name for name in (*writers, reader)]
            if all(name in linears for name in names):
                width = linears[names[0]].out_features
                if linears[names[-1]].in_features == width:
                    found.append(Group("ffn", dict.fromkeys(names[:-1], 1), names[-1], 1, width))
        if isinstance(part, torch.nn.Sequential):
            found += _chain(part, dot)
    order = list(linears)
    return sorted(found, key=lambda group: order.index(group.reader))


def _chain(sequence: torch.nn.Sequential, dot: str) -> list[Group]:
    """Neighbouring Linears of a Sequential with nothing but elementwise functions between them."""
    found = []
    last: tuple[str, torch.nn.Linear] | None = None
    for name, part in sequence.named_children():
        if isinstance(part, torch.nn.Linear):
            if last is not None and last[1].out_features == part.in_features:
                found.append(Group("ffn", {dot + last[0]: 1}, dot + name, 1, part.in_features))
            last = (name, part)
        elif not isinstance(part, _ELEMENTWISE):
            last = None
    return found


def _attention(
    module: torch.nn.Module, linears: dict[str, torch.nn.Linear], names: list[str], owner_name: str
) -> Group | None:
    query, key, value, reader = names
    owner = module.get_submodule(owner_name)
    size = next((getattr(owner, name) for name in _HEAD_SIZES if isinstance(getattr(owner, name, None), int)), 0)
    if size <= 0 or linears[key].out_features % size or linears[reader].in_features != linears[query].out_features:
        return None
    units = linears[key].out_features // size
    heads = linears[query].out_features // size
    if heads % units:
        return None
    per = heads // units
    return Group("heads", {query: per * size, key: size, value: size}, reader, per * size, units, owner_name, per)


def remove(module: torch.nn.Module, group: Group, keep: torch.Tensor) -> None:
    """Keep only the units of `group` in `keep` (sorted indices), in place."""
    linears = linear_dict(module)
    for name, rows in group.writers.items():
        _shrink(linears[name], expand(keep, rows), 0)
    _shrink(linears[group.reader], expand(keep, group.width), 1)
    if group.kind == "ffn":
        parent = module.get_submodule(group.reader.rpartition(".")[0])
        if getattr(parent, "intermediate_size", None) == group.units:
            parent.intermediate_size = len(keep)  # type: ignore[assignment]
    if group.kind == "heads":
        owner = module.get_submodule(group.owner)
        heads = len(keep) * group.heads_per_unit
        for name in ("num_attention_heads", "num_heads", "n_heads"):
            if isinstance(getattr(owner, name, None), int):
                setattr(owner, name, heads)
        if isinstance(getattr(owner, "num_key_value_heads", None), int):
            owner.num_key_value_heads = len(keep)  # type: ignore[assignment]
        if isinstance(getattr(owner, "all_head_size", None), int):
            owner.all_head_size = linears[next(iter(group.writers))].out_features  # type: ignore[assignment]


def expand(units: torch.Tensor, width: int) -> torch.Tensor:
    """Indices of the rows or columns of the given units."""
    return (units[:, None] * width + torch.arange(width)).flatten()


def _shrink(linear: torch.nn.Linear, index: torch.Tensor, dim: int) -> None:
    linear.weight = torch.nn.Parameter(linear.weight.detach().index_select(dim, index).clone())
    if dim == 0 and linear.bias is not None:
        linear.bias = torch.nn.Parameter(linear.bias.detach()[index].clone())
    linear.out_features, linear.in_features = linear.weight.shape


def update_config(module: torch.nn.Module) -> None:
    """Let the config say the new widths where it can and they are the same in every layer."""
    config = getattr(module, "config", None)
    groups = find(module)
    if config is None:
        return
    widths = {group.units for group in groups if group.kind == "ffn"}
    if len(widths) == 1:
        for name in ("intermediate_size", "hidden_dim", "ffn_dim"):
            if isinstance(getattr(config, name, None), int):
                setattr(config, name, widths.pop())
                break
    heads = {(group.units, group.heads_per_unit) for group in groups if group.kind == "heads"}
    # Only a config that names the head size itself can say fewer heads; BERT's divides the hidden width by them.
    if len(heads) == 1 and isinstance(getattr(config, "head_dim", None), int):
        units, per = heads.pop()
        config.num_attention_heads = units * per
        if isinstance(getattr(config, "num_key_value_heads", None), int):
            config.num_key_value_heads = units
