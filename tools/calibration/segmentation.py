"""Image to map of classes, and relatives: FFNet, BiSeNet, DDRNet, PIDNet, DeepLabV3+, MiDaS, PoseNet, CRAFT, ..."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from calibration.blocks import Residual, basic, bottleneck, cat, conv, stage, upsample


class Ffnet(nn.Module):
    """FFNet (Mehta et al. 2022): slim ResNet of basic blocks, nearest upsampling, convolution-only head B or C."""

    def __init__(self, counts: Sequence[int], widths: Sequence[int], strides: Sequence[int], head: str) -> None:
        super().__init__()
        stem = 32 if len(counts) == 4 else 64
        first = [conv(3, stem, 3, 2), conv(stem, widths[0], 3, 2)]
        if len(counts) == 3:
            first.append(conv(widths[0], widths[0], 3, 1))
        self.stem = nn.Sequential(*first)
        blocks, inputs = [], widths[0]
        outputs = widths if len(counts) == 4 else widths[1:]
        for count, width, stride in zip(counts, outputs, strides, strict=True):
            blocks.append(stage(inputs, width, count, stride))
            inputs = width
        self.stages = nn.ModuleList(blocks)
        branches = list(widths)
        base = [64, 128, 128, 256] if head == "B" else [128] * 4
        out = [96, 96, 64, 32] if head == "B" else [128, 16, 16, 16]
        self.three = len(counts) == 3
        self.adapt = nn.ModuleList(conv(i, b, 1) for i, b in zip(branches, base, strict=True))
        self.smooth = nn.ModuleList(conv(b, o) for b, o in zip(base, out, strict=True))
        self.down = nn.ModuleList(conv(base[i], base[i - 1], 1) for i in (1, 2, 3))
        if head == "B":
            self.head = nn.Sequential(conv(sum(out), 256), conv(256, 19, act=""))
        else:
            self.head = nn.Sequential(conv(sum(out), 128, 1), conv(128, 19, 1, act=""))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        found = [x] if self.three else []
        for block in self.stages:
            x = block(x)
            found.append(x)
        maps = [adapt(item) for adapt, item in zip(self.adapt, found, strict=True)]
        smooth = [self.smooth[3](maps[3])]
        x = maps[3]
        for i in (2, 1, 0):
            x = upsample(self.down[i](x), maps[i], "nearest") + maps[i]
            smooth.insert(0, self.smooth[i](x))
        return self.head(cat(smooth[0], *(upsample(item, smooth[0], "nearest") for item in smooth[1:])))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class BiSeNet(nn.Module):
    """BiSeNet (Yu et al. 2018) over ResNet-18, 12 classes."""

    def __init__(self, resnet: Any, classes: int = 12) -> None:
        super().__init__()
        self.spatial = nn.Sequential(conv(3, 64, 3, 2), conv(64, 128, 3, 2), conv(128, 256, 3, 2))
        self.resnet, self.a1, self.a2 = resnet, _Attention(256), _Attention(512)
        self.fuse = conv(1024, classes)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(classes, classes, 1), nn.Conv2d(classes, classes, 1), nn.Sigmoid()
        )
        self.last = nn.Conv2d(classes, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        near, r = self.spatial(x), self.resnet
        y = r.layer2(r.layer1(r.maxpool(r.relu(r.bn1(r.conv1(x))))))
        y16 = r.layer3(y)
        y32 = r.layer4(y16)
        tail = y32.mean((2, 3), keepdim=True)
        far = cat(upsample(self.a1(y16), near), upsample(self.a2(y32) * tail, near))
        fused = self.fuse(cat(near, far))
        return self.last(upsample(fused + fused * self.gate(fused), 8))


class _Pyramid(nn.Module):
    """DAPPM of DDRNet; PAPPM of PIDNet does its four 3x3 as one grouped convolution."""

    def __init__(self, inputs: int, branch: int, outputs: int, *, grouped: bool) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.AvgPool2d(k, s, p) for k, s, p in ((5, 2, 2), (9, 4, 4), (17, 8, 8)))
        self.scales = nn.ModuleList(conv(inputs, branch, 1) for _ in range(5))
        self.grouped = conv(4 * branch, 4 * branch, 3, groups=4) if grouped else None
        self.process = nn.ModuleList(conv(branch, branch) for _ in range(0 if grouped else 4))
        self.compress, self.shortcut = conv(5 * branch, outputs, 1), conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.scales[0](x)
        far = [scale(pool(x)) for scale, pool in zip(self.scales[1:4], self.pools, strict=True)]
        far.append(self.scales[4](x.mean((2, 3), keepdim=True)))
        parts = [first]
        if self.grouped is not None:
            wide = self.grouped(cat(*(upsample(item, x) + first for item in far)))
            return self.compress(cat(first, wide)) + self.shortcut(x)
        for process, item in zip(self.process, far, strict=True):
            parts.append(process(upsample(item, x) + parts[-1]))
        return self.compress(cat(*parts)) + self.shortcut(x)


class Ddrnet(nn.Module):
    """DDRNet-23-slim (Hong et al. 2021): a branch at 1/8 beside one down to 1/64."""

    def __init__(self, width: int = 32, head: int = 64) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(conv(3, w, 3, 2), conv(w, w, 3, 2), stage(w, w, 2, 1), stage(w, 2 * w, 2, 2))
        self.low = nn.ModuleList(
            [stage(2 * w, 4 * w, 2, 2), stage(4 * w, 8 * w, 2, 2), bottleneck(8 * w, 8 * w, 16 * w, 2)]
        )
        self.high = nn.ModuleList(
            [stage(2 * w, 2 * w, 2, 1), stage(2 * w, 2 * w, 2, 1), bottleneck(2 * w, 2 * w, 4 * w)]
        )
        self.squeeze = nn.ModuleList([conv(4 * w, 2 * w, 1, act=""), conv(8 * w, 2 * w, 1, act="")])
        self.down = nn.ModuleList(
            [
                conv(2 * w, 4 * w, 3, 2, act=""),
                nn.Sequential(conv(2 * w, 4 * w, 3, 2), conv(4 * w, 8 * w, 3, 2, act="")),
            ]
        )
        self.pyramid = _Pyramid(16 * w, 128, 4 * w, grouped=False)
        self.head = nn.Sequential(conv(4 * w, head), conv(head, 19, 1, act=""))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        high = x
        for i in (0, 1):
            low = self.low[i](x)
            near = self.high[i](high)
            x = (low + self.down[i](near)).relu()
            high = (near + upsample(self.squeeze[i](low), near)).relu()
        high = self.high[2](high)
        return self.head(high + upsample(self.pyramid(self.low[2](x)), high))


class Pidnet(nn.Module):
    """PIDNet-S (Xu et al. 2023): branches for detail, context and edges."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(conv(3, w, 3, 2), conv(w, w, 3, 2), stage(w, w, 2, 1), stage(w, 2 * w, 2, 2))
        self.context = nn.ModuleList(
            [stage(2 * w, 4 * w, 3, 2), stage(4 * w, 8 * w, 3, 2), bottleneck(8 * w, 8 * w, 16 * w, 2)]
        )
        self.detail = nn.ModuleList(
            [stage(2 * w, 2 * w, 2, 1), stage(2 * w, 2 * w, 2, 1), bottleneck(2 * w, 2 * w, 4 * w)]
        )
        self.edge = nn.ModuleList([basic(2 * w, w), bottleneck(w, w, 2 * w), bottleneck(2 * w, 2 * w, 4 * w)])
        self.squeeze = nn.ModuleList([conv(4 * w, 2 * w, 1, act=""), conv(8 * w, 2 * w, 1, act="")])
        self.gates = nn.ModuleList(
            nn.ModuleList([conv(2 * w, w, 1, act=""), conv(2 * w, w, 1, act="")]) for _ in range(2)
        )
        self.diff = nn.ModuleList([conv(4 * w, w, act=""), conv(8 * w, 2 * w, act="")])
        self.pyramid = _Pyramid(16 * w, 96, 4 * w, grouped=True)
        self.bag = nn.ModuleList([conv(4 * w, 4 * w, 1, act=""), conv(4 * w, 4 * w, 1, act="")])
        self.head = nn.Sequential(conv(4 * w, 128), conv(128, 19, 1, act=""))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        detail = edge = x
        for i in (0, 1):
            x = self.context[i](x)
            detail, edge = self.detail[i](detail), self.edge[i](edge)
            squeezed = self.squeeze[i](x)
            gate = (
                (self.gates[i][0](detail) * upsample(self.gates[i][1](squeezed), detail)).sum(1, keepdim=True).sigmoid()
            )
            detail = (1 - gate) * detail + gate * upsample(squeezed, detail)
            edge = edge + upsample(self.diff[i](x), detail)
        context = upsample(self.pyramid(self.context[2](x)), detail)
        detail, edge = self.detail[2](detail), self.edge[2](edge).sigmoid()
        out = self.bag[0]((1 - edge) * context + detail) + self.bag[1](context + edge * detail)
        return self.head(out)


class DeepLab(nn.Module):
    """DeepLabV3+ (Chen et al. 2018) over MobileNetV2 at stride 16."""

    def __init__(self, features: Any, low: int = 24, high: int = 320, classes: int = 21) -> None:
        super().__init__()
        self.features = features
        self.aspp = nn.ModuleList([conv(high, 256, 1), *(conv(high, 256, 3, dilation=d) for d in (6, 12, 18))])
        self.pooled, self.join, self.low = conv(high, 256, 1), conv(5 * 256, 256, 1), conv(low, 48, 1)
        self.head = nn.Sequential(conv(304, 256), conv(256, 256), conv(256, classes, 1, act=""))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.features(x)
        pooled = upsample(self.pooled(high.mean((2, 3), keepdim=True)), high)
        wide = self.join(cat(*(branch(high) for branch in self.aspp), pooled))
        return upsample(self.head(cat(upsample(wide, low), self.low(low))), x).argmax(1)


class _Refine(nn.Module):
    def __init__(self, width: int, outputs: int, *, first: bool) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            nn.Sequential(nn.ReLU(), conv(width, width), conv(width, width, act="")) for _ in range(1 if first else 2)
        )
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        if side is not None:
            x = x + side + self.units[0](side)
        x = x + self.units[-1](x)
        return self.out(upsample(x, 2))


class Midas(nn.Module):
    """MiDaS v2.1 small (Ranftl et al. 2020) over EfficientNet-Lite3."""

    def __init__(self, features: Any, channels: Sequence[int]) -> None:
        super().__init__()
        widths = (64, 128, 256, 512)
        self.features = features
        self.enter = nn.ModuleList(conv(c, w, act="") for c, w in zip(channels, widths, strict=True))
        outs = (64, 64, 128, 256)
        self.refine = nn.ModuleList(
            _Refine(w, o, first=i == 3) for i, (w, o) in enumerate(zip(widths, outs, strict=True))
        )
        self.head1 = conv(64, 32, act="")
        self.head2 = nn.Sequential(conv(32, 32), conv(32, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        maps = [enter(item) for enter, item in zip(self.enter, self.features(x), strict=True)]
        out = self.refine[3](maps[3])
        for i in (2, 1, 0):
            out = self.refine[i](upsample(out, maps[i]), maps[i])
        return self.head2(upsample(self.head1(out), 2))


def mobilenet_v1(inputs: int, *, strides: Sequence[int] = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)) -> nn.Sequential:
    """MobileNetV1 (Howard et al. 2017) without its classifier."""
    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    layers, before = [conv(inputs, 32, 3, 2)], 32
    for width, stride in zip(widths, strides, strict=True):
        layers += [conv(before, before, 3, stride, groups=before), conv(before, width, 1)]
        before = width
    return nn.Sequential(*layers)


class PoseNet(nn.Module):
    """PoseNet (Papandreou et al. 2018) over MobileNetV1 at stride 16: four 1x1 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mobilenet_v1(3, strides=(1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1))
        self.heads = nn.ModuleList(conv(1024, n, 1, act="") for n in (17, 34, 32, 32))

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.body(x * 2 - 1)
        heat = self.heads[0](y).sigmoid()
        return [heat, *(head(y) for head in self.heads[1:]), nn.functional.max_pool2d(heat, 3, 1, 1)]


class Yamnet(nn.Module):
    """YAMNet: MobileNetV1 over a log-mel patch, 521 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mobilenet_v1(1), nn.Linear(1024, 521)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3))).sigmoid()


class Craft(nn.Module):
    """CRAFT text detector (Baek et al. 2019) over VGG-16 with batch norm."""

    def __init__(self, vgg: Any) -> None:
        super().__init__()
        cuts = (0, 12, 19, 29, 39)
        self.parts = nn.ModuleList(vgg[a:b] for a, b in pairwise(cuts))
        self.fifth = nn.Sequential(
            nn.MaxPool2d(3, 1, 1), conv(512, 1024, dilation=6, act=""), conv(1024, 1024, 1, act="")
        )
        pairs = ((1536, 512, 256), (768, 256, 128), (384, 128, 64), (192, 64, 32))
        self.up = nn.ModuleList(nn.Sequential(conv(i, m, 1), conv(m, o)) for i, m, o in pairs)
        self.head = nn.Sequential(conv(32, 32), conv(32, 32), conv(32, 16), conv(16, 16, 1), conv(16, 2, 1, act=""))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for part in self.parts:
            x = part(x)
            found.append(x)
        y = self.up[0](cat(self.fifth(x), x))
        for up, side in zip(self.up[1:], found[-2::-1], strict=True):
            y = up(cat(upsample(y, side), side))
        return self.head(y)


class _Aot(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(conv(width, width // 4, dilation=d) for d in (1, 2, 4, 8))
        self.fuse, self.gate = conv(width, width, act=""), conv(width, width, act="")

    def forward(self, x: Tensor) -> Tensor:
        out = self.fuse(cat(*(branch(x) for branch in self.branches)))
        mask = self.gate(x)
        mask = (mask - mask.mean((2, 3), keepdim=True)) * 2 / mask.std((2, 3), keepdim=True)
        mask = mask.sigmoid()
        return x * (1 - mask) + out * mask


class AotGan(nn.Module):
    """Generator of AOT-GAN (Zeng et al. 2021): eight blocks of four dilated branches at a quarter of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            conv(4, 64, 7), nn.Conv2d(64, 128, 4, 2, 1), nn.ReLU(), nn.Conv2d(128, 256, 4, 2, 1), nn.ReLU()
        )
        self.body = nn.Sequential(*(_Aot(256) for _ in range(8)))
        self.up1, self.up2, self.last = conv(256, 128), conv(128, 64), conv(64, 3, act="")

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x = self.body(self.enter(torch.cat([image, mask], 1)))
        return self.last(self.up2(upsample(self.up1(upsample(x, 2)), 2))).tanh()


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int, share: int = 16) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(width, width // share, 1), nn.Conv2d(width // share, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class IrSe(nn.Module):
    """IR-SE-100 of face recognition (Deng et al. 2019): residual units with squeeze and excite, 512 numbers out."""

    def __init__(self, counts: Sequence[int] = (3, 13, 30, 3)) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, 64, act="prelu")]
        before = 64
        for count, width in zip(counts, (64, 128, 256, 512), strict=True):
            for index in range(count):
                stride = 2 if index == 0 else 1
                short: nn.Module | None = None
                if before != width:
                    short = conv(before, width, 1, stride, act="")
                elif stride > 1:
                    short = nn.MaxPool2d(1, stride)
                body = nn.Sequential(
                    nn.BatchNorm2d(before),
                    conv(before, width, act="prelu"),
                    conv(width, width, 3, stride, act=""),
                    _SqueezeExcite(width),
                )
                layers.append(Residual(body, short, act=False))
                before = width
        self.body, self.head = nn.Sequential(*layers), nn.Linear(512 * 49, 512)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))
