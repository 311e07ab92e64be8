"""How the model's output reacts to each weight: gradients over the calibration data, without labels.

The loss is what the task gives by itself: next-token cross entropy of a language model; of a classifier the cross
entropy of a class drawn from its own prediction, so that E[g^2] is the true Fisher (Kunstner et al. 2019, eq. 3); else
v . f for outputs f and a random normal direction v, whose E[g^2] over v is the squared length of f's gradient (a loss
against the dense model itself would have gradient zero).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from edgeredux.errors import DataError, ModelError
from edgeredux.model import Model
from edgeredux.pruning.layers import Layer
from edgeredux.seams import Feed


def gradients(
    model: Model, names: Sequence[str], feeds: Sequence[Feed], seed: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean |g| and mean g^2 over the batches for each named layer's matrix, [outputs, inputs] each, float32.

    Raises DataError without feeds, ModelError for gradients that are NaN or infinite. `model` stays untouched.
    """
    if not feeds:
        raise DataError("pruning: there is no calibration data")
    module = copy.deepcopy(model.module).eval().requires_grad_(False)
    parts = {name: Layer(name, module.get_submodule(name)) for name in names}
    for layer in parts.values():
        layer.module.weight.requires_grad_(True)
    student = model.after(module, "")
    sums = {name: (torch.zeros_like(layer.matrix()), torch.zeros_like(layer.matrix())) for name, layer in parts.items()}
    generator = torch.Generator().manual_seed(seed)
    for feed in feeds:
        with torch.enable_grad():
            loss = objective(student, {name: torch.from_numpy(value) for name, value in feed.items()}, generator)
            weights = [layer.module.weight for layer in parts.values()]
            found = torch.autograd.grad(loss, weights, allow_unused=True)  # type: ignore[arg-type]
        for layer, slope in zip(parts.values(), found, strict=True):
            if slope is None:
                raise ModelError(f"pruning: the output does not depend on {layer.name}; exclude it")
            if not bool(torch.isfinite(slope).all()):
                raise ModelError(f"pruning: the gradients at {layer.name} are NaN or infinite")
            matrix = Layer.as_matrix(layer.module, slope)
            sums[layer.name][0].add_(matrix.abs())
            sums[layer.name][1].add_(matrix.square())
    return {name: (first / len(feeds), second / len(feeds)) for name, (first, second) in sums.items()}


def objective(model: Model, feed: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """The scalar whose gradient is taken for one batch."""
    outputs = model.forward(feed)[model.output_names[0]].float()
    mask = feed.get("attention_mask")
    if model.task == "causal-lm":
        tokens = feed["input_ids"][:, 1:]
        real = torch.ones_like(tokens) if mask is None else mask[:, 1:] * mask[:, :-1]
        losses = F.cross_entropy(outputs[:, :-1].flatten(0, 1), tokens.flatten(), reduction="none")
        return (losses * real.flatten()).sum() / real.sum().clamp_min(1)
    if model.task == "classification":
        drawn = torch.multinomial(outputs.detach().softmax(-1), 1, generator=generator)[:, 0]
        return F.cross_entropy(outputs, drawn)
    return directed(model, outputs, mask, generator) / len(outputs)


def directed(
    model: Model, outputs: torch.Tensor, mask: torch.Tensor | None, generator: torch.Generator
) -> torch.Tensor:
    """v . f, summed over the batch, for what the task reads of the outputs (pooled, padding out) and a random v."""
    if mask is not None and outputs.shape[:2] == mask.shape:
        outputs = outputs * mask[..., None]
        if model.task == "embedding" and model.pooling == "mean":
            outputs = outputs.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        elif model.task == "embedding":
            outputs = outputs[:, 0]
    return (outputs * torch.randn(outputs.shape, generator=generator)).sum()
