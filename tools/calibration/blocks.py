"""The few building blocks that our own small definitions of published networks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    act: str = "relu",
    dilation: int = 1,
) -> nn.Module:
    """Convolution with 'same' padding, its batch norm folded, and an activation ('' for none)."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel - 1) // 2, dilation, groups=groups)
    ]
    kinds = {"relu": nn.ReLU, "silu": nn.SiLU, "leaky": nn.LeakyReLU, "prelu": nn.PReLU, "relu6": nn.ReLU6}
    if act:
        layers.append(kinds[act]())
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """x + body(x), or shortcut(x) + body(x), then ReLU unless told otherwise."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, *, act: bool = True) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut, act

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x) + (x if self.shortcut is None else self.shortcut(x))
        return out.relu() if self.act else out


def basic(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """ResNet's basic block (He et al. 2016)."""
    shortcut = conv(inputs, outputs, 1, stride, act="") if stride > 1 or inputs != outputs else None
    return Residual(nn.Sequential(conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3, act="")), shortcut)


def bottleneck(inputs: int, middle: int, outputs: int, stride: int = 1) -> nn.Module:
    """ResNet's bottleneck block."""
    shortcut = conv(inputs, outputs, 1, stride, act="") if stride > 1 or inputs != outputs else None
    body = nn.Sequential(conv(inputs, middle, 1), conv(middle, middle, 3, stride), conv(middle, outputs, 1, act=""))
    return Residual(body, shortcut)


def stage(inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    """`count` basic blocks, the first with the stride."""
    return nn.Sequential(basic(inputs, outputs, stride), *(basic(outputs, outputs) for _ in range(count - 1)))


def upsample(x: Tensor, like: Tensor | Sequence[int] | int, mode: str = "bilinear") -> Tensor:
    """Resize by a factor, to a size or to the size of another map."""
    if isinstance(like, int):
        return nn.functional.interpolate(x, scale_factor=like, mode=mode)
    size = tuple(like.shape[2:]) if isinstance(like, Tensor) else tuple(like)
    return nn.functional.interpolate(x, size=size, mode=mode)


def cat(*parts: Tensor) -> Tensor:
    """Along channels."""
    return torch.cat(parts, 1)
