"""Removing units from a module, and the proof that what is left is the dense module with those channels masked.

Masked means: every layer that mixes channels reads zeros there (after norm and activation, so that a BatchNorm's
constant for a silent channel goes too), and a LayerNorm or GroupNorm that spans the channels takes its statistics
from those that are left. The proof needs no trust in any rule: the dense graph with zeroed columns and the cut module
are executed on the same inputs, with noise on all weights so that a layer that starts at zero hides nothing.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch

from edgeredux.errors import one_line
from edgeredux.model import Model
from edgeredux.pruning.coupling import Coupling, Labels
from edgeredux.pruning.coupling_trace import Graph

# Of the largest output: float32 sums in another order stay below, a wrong channel is far above.
_TOLERANCE = 1e-4
_NOISE = 0.1


def cut(module: torch.nn.Module, coupling: Coupling, gone: Labels) -> None:
    """Remove the units with these root labels, in place; tied parameters stay tied, attributes follow."""
    if not len(gone):
        return
    tensors = _tensors(module)
    made: dict[int, torch.Tensor] = {}
    for name in dict.fromkeys(name for name, _ in coupling.places):
        old = tensors[name]
        new = old.detach()
        for dim in range(old.dim()):
            keep = ~np.isin(coupling.places[name, dim], gone)
            if not keep.all():
                new = new.index_select(dim, torch.from_numpy(np.flatnonzero(keep)))
        if new.shape == old.shape:
            continue
        if id(old) not in made:
            fresh = new.clone(memory_format=torch.contiguous_format)
            made[id(old)] = (
                torch.nn.Parameter(fresh, old.requires_grad) if isinstance(old, torch.nn.Parameter) else fresh
            )
        owner, _, key = name.rpartition(".")
        setattr(module.get_submodule(owner), key, made[id(old)])
    for attribute in coupling.attributes:
        owner_module = module.get_submodule(attribute.module)
        dense, left = len(attribute.labels), int((~np.isin(attribute.labels, gone)).sum())
        wrap: Any = (lambda value: (value,)) if attribute.in_tuple else (lambda value: value)
        # Only a module that says the dense number says this number; a functional call in another module does not.
        if left != dense and getattr(owner_module, attribute.name, None) == wrap(dense // attribute.divisor):
            setattr(owner_module, attribute.name, wrap(left // attribute.divisor))


def prove(model: Model, graph: Graph, coupling: Coupling, gone: Labels) -> str | None:
    """None when the cut module computes what the dense one does with these units masked, else what went wrong."""
    noisy = copy.deepcopy(model.module).eval()
    _add_noise(noisy)
    reduced = copy.deepcopy(noisy)
    cut(reduced, coupling, gone)
    with torch.no_grad():
        wanted = _masked(noisy, graph, coupling, gone)
        if not all(bool(torch.isfinite(value).all()) for value in wanted if value.is_floating_point()):
            return "the masked module gives NaN or infinite values"
        try:
            made = model.after(reduced, "").forward({name: value.clone() for name, value in graph.feed.items()})
        except Exception as problem:  # whatever a module's own code says when a size is written into it
            return one_line(f"the reduced module does not run: {problem}", 160)
    for name, value, dims in zip(model.output_names, wanted, coupling.outputs, strict=True):
        for dim, labels in enumerate(dims):
            value = value.index_select(dim, torch.from_numpy(np.flatnonzero(~np.isin(labels, gone))))
        if made[name].shape != value.shape:
            return f"output {name} would change its shape to {list(made[name].shape)}"
        difference = float((made[name].double() - value.double()).abs().max()) if value.numel() else 0.0
        if not difference <= _TOLERANCE * max(1e-3, float(value.double().abs().max())):
            return f"the reduced module differs from the masked one (output {name}, by {difference:.2g})"
    return None


class _Masked(torch.fx.Interpreter):
    """The dense graph, but norms over channels look at those that are left."""

    def __init__(self, module: torch.fx.GraphModule, blended: dict[str, torch.Tensor]) -> None:
        super().__init__(module)
        self._blended = blended

    def run_node(self, n: torch.fx.Node) -> Any:
        keep = self._blended.get(n.name)
        if keep is None:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        if "mean" in str(n.target):  # the mean square of an RMSNorm
            x, *rest = args
            return n.target(x.index_select(-1, keep), *rest)  # type: ignore[operator]
        x, size, *rest = args
        axis = 1 if "group_norm" in str(n.target) else -1
        size = [len(keep)] if isinstance(size, (list, tuple)) else size
        rest = [value[keep] if isinstance(value, torch.Tensor) else value for value in rest]
        out = torch.zeros_like(x)
        return out.index_copy_(axis, keep, n.target(x.index_select(axis, keep), size, *rest))  # type: ignore[operator]


def _masked(module: torch.nn.Module, graph: Graph, coupling: Coupling, gone: Labels) -> tuple[torch.Tensor, ...]:
    tensors = _tensors(module)
    zeroed: dict[str, torch.Tensor] = {}
    for port in coupling.readers:
        name, dim = port.place
        silent = torch.from_numpy(np.flatnonzero(np.isin(coupling.places[port.place], gone)))
        if len(silent):
            zeroed[name] = zeroed.get(name, tensors[name].detach()).index_fill(dim, silent, 0.0)
    blended = {
        node.name: torch.from_numpy(np.flatnonzero(~np.isin(labels, gone)))
        for node, labels in coupling.blended
        if np.isin(labels, gone).any()
    }
    feed = iter(graph.feed.values())
    given = []
    kinds = torch.export.graph_signature.InputKind
    for spec in graph.program.graph_signature.input_specs:
        if spec.kind == kinds.USER_INPUT:
            given.append(next(feed).clone())
        elif spec.arg.name in graph.stored:
            name = graph.stored[spec.arg.name]
            given.append(zeroed.get(name, tensors[name]).detach())
        else:
            given.append(graph.program.constants[str(spec.target)])
    return tuple(_Masked(graph.program.graph_module, blended).run(*given))


def _add_noise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            if value.is_floating_point():
                size = float(value.double().square().mean().sqrt())
                least = 1.0 if value.dim() < 2 else 1.0 / math.sqrt(max(1, value[0].numel()))
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
                value.add_(noise.to(value.dtype) * _NOISE * max(size, least))


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
