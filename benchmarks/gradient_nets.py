"""The nets that ``benchmarks.gradients`` steps through, as torch modules: what the engines are measured beside."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LeNet(nn.Module):
    """(batch, 1, 28, 28) -> (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two convolutions beside the identity, or beside a 1 x 1 convolution where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside))
        self.second = nn.Sequential(nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside))
        same = inside == outside and stride == 1
        along = [] if same else [nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)]
        self.along = nn.Sequential(*along)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.along(x))


class ResNet18(nn.Module):
    """ResNet-18 for (batch, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        widths = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        blocks = [(Residual(a, b, stride), Residual(b, b, 1)) for a, b, stride in widths]
        self.blocks = nn.Sequential(*(each for pair in blocks for each in pair))
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Inverted(nn.Module):
    """MobileNetV2's block: wider, depthwise, narrower."""

    def __init__(self, inside: int, outside: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = inside * factor
        self.same = inside == outside and stride == 1
        self.layers = nn.Sequential(
            nn.Conv2d(inside, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, outside, 1, bias=False), nn.BatchNorm2d(outside),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.same else self.layers(x)  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    """MobileNetV2 for (batch, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        early = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2))
        rows = (*early, (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
        blocks, inside = [], 32
        for factor, width, count, stride in rows:
            for place in range(count):
                blocks.append(Inverted(inside, width, stride if place == 0 else 1, factor))
                inside = width
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.blocks = nn.Sequential(*blocks)
        self.top = nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6())
        self.head = nn.Linear(1280, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.top(self.blocks(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]


class Attentive(nn.Module):
    """A block of BERT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.three = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.three(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        shares = torch.softmax(q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5, -1)
        x = self.first(x + self.out((shares @ v).transpose(1, 2).reshape(batch, length, width)))
        return self.second(x + self.down(F.gelu(self.up(x))))  # type: ignore[no-any-return]


class Bert(nn.Module):
    """(batch, 32) tokens -> (batch, 10): four blocks of width 128."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(1000, 128), nn.Parameter(torch.randn(32, 128) * 0.02)
        self.blocks = nn.Sequential(*(Attentive(128, 4) for _ in range(4)))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.tokens(x) + self.places)[:, 0])  # type: ignore[no-any-return]


class Listener(nn.Module):
    """(batch, 50, 40) -> (batch, 10): an LSTM in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 64, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))  # type: ignore[no-any-return]


NETS = {
    "LeNet": (LeNet, (1, 28, 28)), "ResNet-18 32x32": (ResNet18, (3, 32, 32)),
    "MobileNetV2 32x32": (MobileNetV2, (3, 32, 32)), "BERT-4": (Bert, (32,)), "bi-LSTM": (Listener, (50, 40)),
}  # fmt: skip
"""Class and shape of a sample by name."""
