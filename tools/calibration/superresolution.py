"""Image to larger image: QuickSRNet, SESR, XLSR, SRVGG, RRDB; each from its paper, 4x."""

from __future__ import annotations

from torch import Tensor, nn

from calibration.blocks import cat, conv, upsample

SCALE = 4
COLOURS = 3 * SCALE * SCALE


class QuickSR(nn.Module):
    """QuickSRNet (Berger et al. 2023): 3x3 convolutions, then depth to space."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, width), *(conv(width, width) for _ in range(depth)), conv(width, COLOURS, act="")
        )
        self.shuffle = nn.PixelShuffle(SCALE)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.body(x))


class Sesr(nn.Module):
    """SESR-M5 (Bhardwaj et al. 2022) collapsed: 5x5 in and out, five 3x3 between, two long residuals."""

    def __init__(self, width: int = 16, depth: int = 5) -> None:
        super().__init__()
        self.first, self.last = conv(3, width, 5, act="prelu"), conv(width, COLOURS, 5, act="")
        self.body = nn.Sequential(*(conv(width, width, 3, act="prelu") for _ in range(depth)))
        self.anchor = conv(3, COLOURS, 1, act="")
        self.shuffle = nn.PixelShuffle(SCALE)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.shuffle(self.last(first + self.body(first)) + self.anchor(x))


class Xlsr(nn.Module):
    """XLSR (Ayazoglu 2021): three blocks of a grouped 3x3 and a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        block = [layer for _ in range(3) for layer in (conv(32, 32, 3, groups=4), conv(32, 32, 1))]
        self.side = conv(3, 16, act="")
        self.body = nn.Sequential(conv(3, 32), conv(32, 32, 1, act=""), *block)
        self.tail = nn.Sequential(conv(48, 32, 1), conv(32, COLOURS), nn.PixelShuffle(SCALE))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(cat(self.side(x), self.body(x)))


class Srvgg(nn.Module):
    """SRVGGNetCompact of Real-ESRGAN: 32 3x3 convolutions with PReLU, input added after nearest upsampling."""

    def __init__(self, width: int = 64, depth: int = 32) -> None:
        super().__init__()
        body = [conv(width, width, act="prelu") for _ in range(depth)]
        self.body = nn.Sequential(
            conv(3, width, act="prelu"), *body, conv(width, COLOURS, act=""), nn.PixelShuffle(SCALE)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + upsample(x, SCALE, "nearest")


class _Dense(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            conv(width + i * growth, growth if i < 4 else width, act="leaky" if i < 4 else "") for i in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for layer in self.layers:
            parts.append(layer(cat(*parts)))
        return x + parts[-1] * 0.2


class _Rrdb(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(_Dense(width, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) * 0.2


class Rrdb(nn.Module):
    """RRDBNet of ESRGAN (Wang et al. 2018): 23 residual-in-residual dense blocks."""

    def __init__(self, width: int = 64, growth: int = 32, depth: int = 23) -> None:
        super().__init__()
        self.first, self.body_out = conv(3, width, act=""), conv(width, width, act="")
        self.body = nn.Sequential(*(_Rrdb(width, growth) for _ in range(depth)))
        self.up1, self.up2 = conv(width, width, act="leaky"), conv(width, width, act="leaky")
        self.tail = nn.Sequential(conv(width, width, act="leaky"), conv(width, 3, act=""))

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        x = first + self.body_out(self.body(first))
        x = self.up1(upsample(x, 2, "nearest"))
        return self.tail(self.up2(upsample(x, 2, "nearest")))
