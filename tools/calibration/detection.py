"""The YOLO family, v3-tiny to v11, each from its published model table; anchor-free heads as exported today."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from calibration.blocks import cat, conv, upsample

CLASSES = 80


def silu(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Module:
    """Convolution with SiLU."""
    return conv(inputs, outputs, kernel, stride, groups=groups, act="silu")


class Bottle(nn.Module):
    """Two convolutions and, where the sizes allow, the sum with the input."""

    def __init__(self, width: int, *, add: bool, hidden: float = 1.0, kernels: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        inner = int(width * hidden)
        self.body, self.add = nn.Sequential(silu(width, inner, kernels[0]), silu(inner, width, kernels[1])), add

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.add else self.body(x)


class C3(nn.Module):
    """YOLOv5's cross-stage block."""

    def __init__(
        self, inputs: int, outputs: int, count: int, *, add: bool = True, kernels: tuple[int, int] = (1, 3)
    ) -> None:
        super().__init__()
        half = outputs // 2
        self.a, self.b, self.out = silu(inputs, half), silu(inputs, half), silu(2 * half, outputs)
        self.body = nn.Sequential(*(Bottle(half, add=add, kernels=kernels) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(cat(self.body(self.a(x)), self.b(x)))


class C2f(nn.Module):
    """YOLOv8's cross-stage block; with `nested` the C3k2 of YOLO11, with `large` the C2fCIB of YOLOv10."""

    def __init__(
        self, inputs: int, outputs: int, count: int, *, add: bool = False, share: float = 0.5, kind: str = "plain"
    ) -> None:
        super().__init__()
        self.width = int(outputs * share)
        self.enter, self.out = silu(inputs, 2 * self.width), silu((2 + count) * self.width, outputs)
        self.body = nn.ModuleList(self._part(kind, add) for _ in range(count))

    def _part(self, kind: str, add: bool) -> nn.Module:
        w = self.width
        if kind == "c3k":
            return C3(w, w, 2, add=add, kernels=(3, 3))
        if kind == "half":
            return Bottle(w, add=add, hidden=0.5)
        if kind == "cib":
            return nn.Sequential(
                silu(w, w, 3, groups=w),
                silu(w, 2 * w),
                silu(2 * w, 2 * w, 7, groups=2 * w),
                silu(2 * w, w),
                silu(w, w, 3, groups=w),
            )
        return Bottle(w, add=add)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for part in self.body:
            parts.append(part(parts[-1]))
        return self.out(cat(*parts))


class Sppf(nn.Module):
    """Three max-pools of 5 in a row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.out, self.pool = silu(width, width // 2), silu(2 * width, width), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.out(cat(*parts))


class Psa(nn.Module):
    """Attention over the smallest map, on half of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.half = half = width // 2
        self.heads = max(1, half // 64)
        self.key = half // self.heads // 2
        self.enter, self.out = silu(width, 2 * half), silu(2 * half, width)
        self.qkv = conv(half, half + 2 * self.key * self.heads, 1, act="")
        self.project, self.place = conv(half, half, 1, act=""), conv(half, half, 3, groups=half, act="")
        self.feed = nn.Sequential(silu(half, 2 * half), conv(2 * half, half, 1, act=""))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.enter(x).chunk(2, 1)
        size = b.shape
        q, k, v = (
            self.qkv(b)
            .view(size[0], self.heads, -1, size[2] * size[3])
            .split([self.key, self.key, self.half // self.heads], 2)
        )
        mixed = v @ (q.transpose(-2, -1) @ k * self.key**-0.5).softmax(-1).transpose(-2, -1)
        b = b + self.project(mixed.reshape(size) + self.place(v.reshape(size)))
        return self.out(cat(a, b + self.feed(b)))


class Detect(nn.Module):
    """Box distribution (16 bins a side) and classes for each place; decoded boxes come out."""

    def __init__(self, widths: Sequence[int], *, depthwise: bool = False, masks: int = 0) -> None:
        super().__init__()
        box, cls = max(16, widths[0] // 4, 64), max(widths[0], min(CLASSES, 100))
        self.box = nn.ModuleList(
            nn.Sequential(silu(w, box, 3), silu(box, box, 3), conv(box, 64, 1, act="")) for w in widths
        )
        self.cls = nn.ModuleList(self._classes(w, cls, depthwise) for w in widths)
        self.mask = nn.ModuleList()
        self.bins = nn.Conv2d(16, 1, 1)
        if masks:
            inner = max(widths[0] // 4, 32)
            self.mask = nn.ModuleList(
                nn.Sequential(silu(w, inner, 3), silu(inner, inner, 3), conv(inner, 32, 1, act="")) for w in widths
            )
            self.proto = nn.Sequential(
                silu(widths[0], masks, 3),
                nn.ConvTranspose2d(masks, masks, 2, 2),
                silu(masks, masks, 3),
                silu(masks, 32),
            )

    @staticmethod
    def _classes(width: int, inner: int, depthwise: bool) -> nn.Module:
        if not depthwise:
            return nn.Sequential(silu(width, inner, 3), silu(inner, inner, 3), conv(inner, CLASSES, 1, act=""))
        return nn.Sequential(
            silu(width, width, 3, groups=width),
            silu(width, inner),
            silu(inner, inner, 3, groups=inner),
            silu(inner, inner),
            conv(inner, CLASSES, 1, act=""),
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        flat = [cat(box(x), cls(x)).flatten(2) for box, cls, x in zip(self.box, self.cls, maps, strict=True)]
        import torch

        whole = torch.cat(flat, 2)
        sides, classes = whole.split([64, CLASSES], 1)
        decoded = self.bins(sides.view(1, 4, 16, -1).transpose(2, 1).softmax(1)).view(1, 4, -1)
        near, far = decoded.chunk(2, 1)
        out = [cat(near + far, far - near), *classes.sigmoid().max(1)]
        if self.mask:
            out += [torch.cat([m(x).flatten(2) for m, x in zip(self.mask, maps, strict=True)], 2), self.proto(maps[0])]
        return out


class Pan(nn.Module):
    """Backbone of five stages, up and down again, three maps to the head."""

    def __init__(self, version: str, depth: float, width: float, limit: int = 1024, *, masks: bool = False) -> None:
        super().__init__()

        def c(base: int) -> int:
            return math.ceil(min(base, limit) * width / 8) * 8

        def n(base: int) -> int:
            return max(round(base * depth), 1)

        v8, v10, v11, v5 = (version == v for v in ("8", "10", "11", "5"))

        def block(
            i: int, o: int, count: int, *, add: bool = False, deep: bool = False, share: float = 0.5
        ) -> nn.Module:
            if v5:
                return C3(i, o, count, add=add)
            if v11:
                return C2f(i, o, count, add=True, share=share, kind="c3k" if deep else "half")
            return C2f(i, o, count, add=add)

        def down(i: int, o: int) -> nn.Module:
            if v10:
                return nn.Sequential(silu(i, o), conv(o, o, 3, 2, groups=o, act=""))
            return silu(i, o, 3, 2)

        wide = 2 if v11 else 1
        s = [c(64), c(128), c(256), c(512), c(1024)]
        counts = (3, 9, 9, 3) if v5 else ((2, 2, 2, 2) if v11 else (3, 6, 6, 3))
        if v5:
            counts = (3, 6, 9, 3)
        third = c(512) if v11 else s[2]
        self.stem = nn.Sequential(silu(3, s[0], 6 if v5 else 3, 2), silu(s[0], s[1], 3, 2))
        self.s2 = block(s[1], s[1] * wide, n(counts[0]), add=True, share=0.25 if v11 else 0.5)
        self.s3 = nn.Sequential(
            silu(s[1] * wide, s[2], 3, 2), block(s[2], third, n(counts[1]), add=True, share=0.25 if v11 else 0.5)
        )
        self.s4 = nn.Sequential(
            down(third, s[3]) if v10 else silu(third, s[3], 3, 2), block(s[3], s[3], n(counts[2]), add=True, deep=True)
        )
        self.s5 = nn.Sequential(
            down(s[3], s[4]) if v10 else silu(s[3], s[4], 3, 2),
            block(s[4], s[4], n(counts[3]), add=True, deep=True),
            Sppf(s[4]),
        )
        self.attend = Psa(s[4]) if v10 or v11 else nn.Identity()
        hn = n(2) if v11 else n(3)
        self.lat5 = silu(s[4], s[3]) if v5 else nn.Identity()
        w5 = s[3] if v5 else s[4]
        self.h4 = block(w5 + s[3], s[3], hn)
        self.lat4 = silu(s[3], s[2]) if v5 else nn.Identity()
        w4 = s[2] if v5 else s[3]
        self.h3 = block(w4 + third, s[2], hn)
        self.d3, self.h4b = silu(s[2], s[2], 3, 2), block(s[2] + w4, s[3], hn)
        self.d4 = down(s[3], s[3]) if v10 else silu(s[3], s[3], 3, 2)
        self.h5 = C2f(s[3] + w5, s[4], hn, kind="cib") if v10 else block(s[3] + w5, s[4], hn, deep=True)
        self.head = Detect((s[2], s[3], s[4]), depthwise=v10 or v11, masks=c(256) if masks else 0)
        assert v8 or v10 or v11 or v5

    def forward(self, x: Tensor) -> list[Tensor]:
        p3 = self.s3(self.s2(self.stem(x)))
        p4 = self.s4(p3)
        p5 = self.lat5(self.attend(self.s5(p4)))
        h4 = self.lat4(self.h4(cat(upsample(p5, 2, "nearest"), p4)))
        h3 = self.h3(cat(upsample(h4, 2, "nearest"), p3))
        h4b = self.h4b(cat(self.d3(h3), h4))
        return self.head([h3, h4b, self.h5(cat(self.d4(h4b), p5))])


class V3Tiny(nn.Module):
    """YOLOv3-tiny with the anchor-free head."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 128, 256)
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [silu(i, o, 3), nn.MaxPool2d(2)]
        self.first = nn.Sequential(*layers[:-1])
        self.second = nn.Sequential(
            nn.MaxPool2d(2),
            silu(256, 512, 3),
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.MaxPool2d(2, 1),
            silu(512, 1024, 3),
            silu(1024, 256),
        )
        self.deep, self.side, self.wide = silu(256, 512, 3), silu(256, 128), silu(384, 256, 3)
        self.head = Detect((256, 512))

    def forward(self, x: Tensor) -> list[Tensor]:
        p4 = self.first(x)
        p5 = self.second(p4)
        return self.head([self.wide(cat(upsample(self.side(p5), 2, "nearest"), p4)), self.deep(p5)])


class _Elan(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.a, self.b = conv(inputs, inner, 1, act="leaky"), conv(inputs, inner, 1, act="leaky")
        self.c, self.d = conv(inner, inner, act="leaky"), conv(inner, inner, act="leaky")
        self.out = conv(4 * inner, outputs, 1, act="leaky")

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        c = self.c(b)
        return self.out(cat(self.d(c), c, b, a))


class V7Tiny(nn.Module):
    """YOLOv7-tiny (Wang et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()

        def leaky(i: int, o: int, k: int = 1, s: int = 1) -> nn.Module:
            return conv(i, o, k, s, act="leaky")

        pool = nn.MaxPool2d(2)
        self.s3 = nn.Sequential(leaky(3, 32, 3, 2), leaky(32, 64, 3, 2), _Elan(64, 32, 64), pool, _Elan(64, 64, 128))
        self.s4, self.s5 = nn.Sequential(pool, _Elan(128, 128, 256)), nn.Sequential(pool, _Elan(256, 256, 512))
        self.a, self.b = leaky(512, 256), leaky(512, 256)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.c, self.d = leaky(1024, 256), leaky(512, 256)
        self.l5, self.r4, self.h4 = leaky(256, 128), leaky(256, 128), _Elan(256, 64, 128)
        self.l4, self.r3, self.h3 = leaky(128, 64), leaky(128, 64), _Elan(128, 32, 64)
        self.d3, self.h4b, self.d4, self.h5 = (
            leaky(64, 128, 3, 2),
            _Elan(256, 64, 128),
            leaky(128, 256, 3, 2),
            _Elan(512, 128, 256),
        )
        self.heads = nn.ModuleList(
            nn.Sequential(leaky(w, 2 * w, 3), conv(2 * w, 255, 1, act="")) for w in (64, 128, 256)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        p3 = self.s3(x)
        p4 = self.s4(p3)
        p5 = self.s5(p4)
        a = self.a(p5)
        p5 = self.d(cat(self.c(cat(*(pool(a) for pool in self.pools), a)), self.b(p5)))
        h4 = self.h4(cat(self.r4(p4), upsample(self.l5(p5), 2, "nearest")))
        h3 = self.h3(cat(self.r3(p3), upsample(self.l4(h4), 2, "nearest")))
        h4b = self.h4b(cat(self.d3(h3), h4))
        maps = [h3, h4b, self.h5(cat(self.d4(h4b), p5))]
        out = []
        for head, item in zip(self.heads, maps, strict=True):
            raw = head(item)
            out.append(raw.view(1, 3, 85, -1).permute(0, 1, 3, 2).sigmoid())
        return out


class Yolox(nn.Module):
    """YOLOX-s (Ge et al. 2021): CSPDarknet, decoupled head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        self.stem = silu(12, w, 3)
        self.s2 = nn.Sequential(silu(w, 2 * w, 3, 2), C3(2 * w, 2 * w, 1))
        self.s3 = nn.Sequential(silu(2 * w, 4 * w, 3, 2), C3(4 * w, 4 * w, 3))
        self.s4 = nn.Sequential(silu(4 * w, 8 * w, 3, 2), C3(8 * w, 8 * w, 3))
        self.s5 = nn.Sequential(silu(8 * w, 16 * w, 3, 2), Sppf(16 * w), C3(16 * w, 16 * w, 1, add=False))
        self.l5, self.h4 = silu(16 * w, 8 * w), C3(16 * w, 8 * w, 1, add=False)
        self.l4, self.h3 = silu(8 * w, 4 * w), C3(8 * w, 4 * w, 1, add=False)
        self.d3, self.h4b = silu(4 * w, 4 * w, 3, 2), C3(8 * w, 8 * w, 1, add=False)
        self.d4, self.h5 = silu(8 * w, 8 * w, 3, 2), C3(16 * w, 16 * w, 1, add=False)
        self.enter = nn.ModuleList(silu(i * w, 4 * w) for i in (4, 8, 16))
        self.cls = nn.ModuleList(nn.Sequential(silu(4 * w, 4 * w, 3), silu(4 * w, 4 * w, 3)) for _ in range(3))
        self.reg = nn.ModuleList(nn.Sequential(silu(4 * w, 4 * w, 3), silu(4 * w, 4 * w, 3)) for _ in range(3))
        self.out = nn.ModuleList(nn.ModuleList(nn.Conv2d(4 * w, n, 1) for n in (80, 4, 1)) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = cat(x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        p3 = self.s3(self.s2(self.stem(x)))
        p4 = self.s4(p3)
        p5 = self.l5(self.s5(p4))
        h4 = self.l4(self.h4(cat(upsample(p5, 2, "nearest"), p4)))
        h3 = self.h3(cat(upsample(h4, 2, "nearest"), p3))
        h4b = self.h4b(cat(self.d3(h3), h4))
        maps = [h3, h4b, self.h5(cat(self.d4(h4b), p5))]
        found = []
        for enter, cls, reg, out, item in zip(self.enter, self.cls, self.reg, self.out, maps, strict=True):
            item = enter(item)
            c, r = cls(item), reg(item)
            found.append(cat(out[1](r), out[2](r).sigmoid(), out[0](c).sigmoid()).flatten(2))
        return found
