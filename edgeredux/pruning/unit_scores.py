"""What a unit (FFN neuron, KV head with its query heads) is worth: one number, larger = more is lost with it.

activation   sum over its columns j of the reader  E[x_j^2] * ||W[:, j]||^2: the energy it brings to the output
             (Wanda's |W| * ||X||, Sun et al. 2023, eq. 1, squared and summed over outputs)
magnitude    sum over its columns j of the reader  ||W[:, j]||^2
taylor       how far the model's output moves without it, to first order (taylor.py)
others       random, fisher, wanda, sparsegpt, alps: the sum of the method's scores of all weights that go with it,
             rows of the writers and columns of the reader (scores.py)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeredux.errors import ModelError
from edgeredux.model import Model
from edgeredux.pruning.groups import Group
from edgeredux.pruning.layers import Layer
from edgeredux.pruning.methods import METHODS, method
from edgeredux.pruning.scores import element_scores
from edgeredux.pruning.taylor import taylor_scores
from edgeredux.pruning.walk import Inputs, walk
from edgeredux.seams import Feed

# Scored here from what the reader reads, so that a reader can also be scored behind layers that are pruned already.
READ = ("activation", "magnitude")
IMPORTANCE = tuple(dict.fromkeys((*READ, "taylor", *METHODS)))


def unit_scores(
    model: Model, groups: Sequence[Group], importance: str, feeds: Sequence[Feed], seed: int
) -> dict[str, torch.Tensor]:
    """Scores of the dense model's units, [units] float64, by the group's reader. Raises ModelError for NaN scores."""
    found: dict[str, torch.Tensor] = {}
    if importance in READ:
        home = {group.reader: group for group in groups}

        def visit(layer: Layer, inputs: Inputs) -> None:
            found[layer.name] = read_scores(home[layer.name], layer.matrix(), inputs, importance)

        walk(model, [Layer(name, model.module.get_submodule(name)) for name in home], feeds, visit)
    elif importance == "taylor":
        found = taylor_scores(model, groups, feeds, seed)
    else:
        names = list(dict.fromkeys(name for group in groups for name in (*group.writers, group.reader)))
        single = element_scores(model, names, method(importance, "structured"), feeds, seed)
        for group in groups:
            total = _summed(single[group.reader].double().sum(0), group.columns)
            for name, rows in group.writers.items():
                total = total + _summed(single[name].double().sum(1), rows)
            found[group.reader] = total
    for name, score in found.items():
        if not bool(torch.isfinite(score).all()):
            raise ModelError(f"structured: the {importance} scores at {name} are NaN or infinite")
    return found


def read_scores(group: Group, weight: torch.Tensor, inputs: Inputs, importance: str) -> torch.Tensor:
    """Scores of a group's units from its reader's matrix and inputs ([1, positions, columns] a batch)."""
    columns = weight.double().square().sum(0)
    if importance == "activation":
        count = sum(part.shape[1] for part in inputs)
        columns = columns * torch.stack([part.double().square().sum((0, 1)) for part in inputs]).sum(0) / count
    return _summed(columns, group.columns)


def _summed(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return values[index].sum(1)
