"""Pictures (N, 1, 16, 16) in 0..255 made twice as large by depth to space, beside a plain enlargement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds._scenes import SHAPES, background, contrast, shape_mask

KIND = "restoration"
EXPORTER = "torch-dynamo"
SIZE = 32


def pictures(seed: int, count: int) -> tuple[Array, Array]:
    """Small pictures (count, 16, 16) and large ones (count, 32, 32), both uint8."""
    rng = np.random.default_rng(seed)
    large = np.zeros((count, SIZE, SIZE))
    for index in range(count):
        fine = background(rng, 2 * SIZE, 3)
        for _ in range(rng.integers(1, 4)):
            x, y = rng.uniform(0, 2 * SIZE, 2)
            shape = str(rng.choice(SHAPES))
            fine += contrast(rng, 20, 70) * shape_mask(shape, x, y, rng.uniform(8, 28), rng.uniform(0, 6), 2 * SIZE)
        large[index] = halve(fine)
    small = np.clip(np.stack([halve(each) for each in large]) + rng.normal(0, 2, (count, 16, 16)), 0, 255)
    return small.round().astype(np.uint8), np.clip(large, 0, 255).round().astype(np.uint8)


def halve(picture: Array) -> Array:
    """Means of 2 x 2 pixels."""
    side = len(picture) // 2
    return picture.reshape(side, 2, side, 2).mean((1, 3))


def network() -> Any:
    """The torch module, untrained."""
    import torch
    from torch import nn

    class Enlarger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(1, 32, 5, padding=2)
            self.body = nn.ModuleList(
                [
                    nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.PReLU(32), nn.Conv2d(32, 32, 3, padding=1))
                    for _ in range(2)
                ]
            )
            self.tail = nn.Conv2d(32, 4, 3, padding=1)
            nn.init.zeros_(self.tail.weight)

        def forward(self, small: torch.Tensor) -> torch.Tensor:
            value = self.head(small / 127.5 - 1)
            for block in self.body:
                value = value + block(value)
            plain = nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear")
            return plain + 127.5 * nn.functional.pixel_shuffle(self.tail(value), 2)

    return Enlarger()


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch

    from benchmarks.judge import training

    training.start(seed)
    small, large = (torch.tensor(each[:, None].astype(np.float32)) for each in pictures(seed, 3000))
    net = network()

    def loss(given: Any, wanted: Any) -> Any:
        return ((net(given) - wanted) / 10).square().mean()

    training.fit(net, loss, (small, large), epochs=6, batch=32)
    batch = {0: torch.export.Dim("batch")}
    training.export_dynamo(
        net, (small[:2],), folder / "model.onnx", inputs=["small"], outputs=["large"], shapes=(batch,)
    )
    tested, wanted = pictures(seed + 1, 200)
    calib = pictures(seed + 2, 200)[0][:, None].astype(np.float32)
    np.savez_compressed(folder / "calib.npz", small=calib)
    np.savez_compressed(folder / "test.npz", small=tested, large=wanted)


def units(run: Run, test: dict[str, Array]) -> Array:
    """Per picture: peak signal to noise in decibels, (n, 1)."""
    found = run({"small": test["small"][:, None].astype(np.float32)})["large"][:, 0].astype(np.float64)
    error = ((np.clip(found, 0, 255) - test["large"]) ** 2).mean((1, 2))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-6))[:, None]


def score(units: Array) -> float:
    """Mean peak signal to noise in decibels, x 5."""
    return 5 * float(units.mean())
