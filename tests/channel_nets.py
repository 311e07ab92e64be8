"""Small convolutional nets with every way in which channels depend on each other, seeded, and what goes into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edgeredux.model import Model
from edgeredux.seams import Feed


def conv_bn(inp: int, out: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inp, out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class Mobile(nn.Module):
    """Depthwise separable blocks with residuals, squeeze and excitation, as MobileNetV2/V3 has them."""

    def __init__(self, width: int = 12, classes: int = 5, inp: int = 3) -> None:
        super().__init__()
        self.stem = conv_bn(inp, width, stride=2)
        self.expand = conv_bn(width, 2 * width, 1)
        self.depthwise = conv_bn(2 * width, 2 * width, groups=2 * width)
        self.squeeze = nn.Conv2d(2 * width, width // 2, 1)
        self.excite = nn.Conv2d(width // 2, 2 * width, 1)
        self.project = conv_bn(2 * width, width, 1)
        self.last = conv_bn(width, 2 * width, 1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.stem(x))
        y = F.relu6(self.depthwise(F.relu6(self.expand(x))))
        scale = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(y * scale)
        return self.head(F.hardswish(self.last(x)).mean((2, 3)))


class BasicBlock(nn.Module):
    """He et al. 2016 for CIFAR: option A shortcuts take every second position and pad channels with zeros."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.wider = out // 4 if stride != 1 or inp != out else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.wider, self.wider)) if self.wider else x
        return F.relu(y + short)


class ResNet20(nn.Module):
    def __init__(self, blocks: int = 3, width: int = 16, inp: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inside = width
        for stage in range(3):
            out = width << stage
            made = []
            for index in range(blocks):
                made.append(BasicBlock(inside, out, 2 if stage and not index else 1))
                inside = out
            setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


class DsCnn(nn.Module):
    """The keyword spotter of MLPerf Tiny: depthwise and pointwise convolutions, then one Linear."""

    def __init__(self, width: int = 16, classes: int = 12) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, (10, 4), 2, (5, 1)), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Dropout(0.4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class UNet(nn.Module):
    """Two levels, skip by concatenation, transposed convolution up, whole groups of a GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.deep = nn.Conv2d(8, 12, 3, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.act = nn.PReLU(6)
        self.mix = nn.Conv2d(14, 10, 3, padding=1)
        self.out = nn.Conv2d(10, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = F.relu(self.norm(self.down(x)))
        y = self.act(self.up(F.leaky_relu(self.deep(F.max_pool2d(skip, 2)))))
        return self.out(F.silu(self.mix(torch.cat([skip, y], dim=1))))


class Shuffle(nn.Module):
    """ShuffleNetV2: half of the channels pass, the halves are shuffled by a view that asks for the sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.branch = nn.Sequential(conv_bn(8, 8, 1), nn.ReLU(), conv_bn(8, 8, groups=8), conv_bn(8, 8, 1), nn.ReLU())
        self.last = conv_bn(16, 12, 1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.stem(x).relu().chunk(2, dim=1)
        x = torch.cat((one, self.branch(two)), dim=1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.last(x).relu(), 1), 1))


class Grouped(nn.Module):
    """Convolutions in few large groups (positions go) and in many small ones (groups go), plain and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.one = conv_bn(3, 16, 1)
        self.few = nn.Conv2d(16, 8, 3, padding=1, groups=2)
        self.two = nn.Conv2d(8, 16, 1)
        self.many = nn.Conv2d(16, 8, 3, padding=1, groups=8)
        self.three = nn.Conv2d(8, 16, 1)
        self.up_few = nn.ConvTranspose2d(16, 12, 2, stride=2, groups=2)
        self.four = nn.Conv2d(12, 8, 1)
        self.up_many = nn.ConvTranspose2d(8, 16, 3, groups=4)
        self.five = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.two(self.few(self.one(x).relu()).relu()).relu()
        x = self.three(self.many(x).relu()).relu()
        return self.five(self.up_many(self.four(self.up_few(x).relu()).relu()).relu())


class Signal(nn.Module):
    """1-D: instance norm, a raw scale, gated linear unit, flatten into a Linear, stacked heads."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(2, 8, 3, padding=1)
        self.norm = nn.InstanceNorm1d(8, affine=True)
        self.scale = nn.Parameter(torch.randn(1, 8, 1))
        self.gate = nn.Conv1d(8, 12, 1)
        self.hidden = nn.Linear(6 * 4, 10)
        self.left, self.right = nn.Linear(10, 7), nn.Linear(10, 7)
        self.out = nn.Linear(7, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = F.glu(self.gate(self.norm(self.one(x)).mul(self.scale).tanh()), dim=1)
        x = self.hidden(F.max_pool1d(x, 4).flatten(1)).relu()
        both = torch.stack([self.left(x), self.right(x)])
        return {"y": self.out(both.sum(0)), "z": x[:, :2]}


class Upscale(nn.Module):
    """Super-resolution: residual in features, pixel shuffle, a 3-D convolution over two frames."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Conv3d(3, 8, (2, 3, 3), padding=(0, 1, 1))
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Conv2d(8, 24, 3, padding=1)
        self.out = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frames(torch.stack([x, x.flip(3)], dim=2)).squeeze(2).relu()
        x = x + F.interpolate(self.body(F.avg_pool2d(x, 2)), scale_factor=2.0)
        return self.out(F.pixel_shuffle(self.up(x), 2).relu())


class Features(nn.Module):
    """Linears of no known structure: residual, LayerNorm, two branches multiplied, another name for everything."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.d, self.e = nn.Linear(16, 10), nn.Linear(16, 10)
        self.f = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        x = self.norm(x + self.c(self.b(x).relu()))
        return self.f(self.d(x) * self.e(x).sigmoid())


class ConvNext(nn.Module):
    """Channels last for the LayerNorm and Linears, a layer scale that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)
        self.gamma = nn.Parameter(torch.zeros(8))
        self.final = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.narrow(F.gelu(self.wide(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        x = x + (self.gamma * y).permute(0, 3, 1, 2)
        return self.head(self.final(x).mean([-2, -1]))


class LeNet(nn.Module):
    """Sizes written into forward: the flatten says 16 * 2 * 2, the cut says 3."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 16, 3)
        self.cut = nn.Conv2d(6, 6, 1)
        self.three, self.four = nn.Linear(16 * 2 * 2, 20), nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.one(x).relu(), 2)
        y = self.cut(x)
        x = torch.cat([y[:, :3], x[:, 3:]], 1)
        x = F.max_pool2d(self.two(x).relu(), 2).view(-1, 16 * 2 * 2)
        return self.four(self.three(x).relu())


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobile": (Mobile, (3, 8, 8)),
    "resnet20": (lambda: ResNet20(2, 8), (3, 8, 8)),
    "ds-cnn": (DsCnn, (1, 25, 10)),
    "u-net": (UNet, (3, 8, 8)),
    "shuffle": (Shuffle, (3, 8, 8)),
    "grouped": (Grouped, (3, 5, 5)),
    "signal": (Signal, (2, 16)),
    "upscale": (Upscale, (3, 6, 6)),
    "features": (Features, (6,)),
    "convnext": (ConvNext, (3, 8, 8)),
}


def model_of(
    module: nn.Module, shape: tuple[int, ...], outputs: tuple[str, ...] = ("y",), axes: Any = None, **more: Any
) -> Model:
    """An untrained module with running statistics that are not 0 and 1."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.2)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.bias, std=0.3)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    module.eval()
    with torch.no_grad():
        made = module(torch.zeros(2, *shape)) if axes is None else {}
    ranks = [value.dim() for value in (made.values() if isinstance(made, dict) else (made,))]
    known = (
        dict(zip(outputs, (("batch", *[None] * (rank - 1)) for rank in ranks), strict=True)) if axes is None else axes
    )
    return Model(
        module=module,
        name="net",
        task="generic",
        input_names=("x",),
        output_names=outputs,
        axes={"x": ("batch", *[None] * len(shape)), **known},
        source="net",
        sha256="0" * 64,
        **more,
    )


def net(name: str) -> Model:
    torch.manual_seed(0)
    make, shape = NETS[name]
    return model_of(make(), shape, ("y", "z") if name == "signal" else ("y",))


def feeds_of(shape: tuple[int, ...], batches: int = 4, size: int = 32) -> list[Feed]:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal((size, *shape)).astype(np.float32)} for _ in range(batches)]
