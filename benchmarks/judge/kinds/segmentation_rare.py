"""A small U-Net that parts large shapes from rare small spots (about one pixel in 150), logits (N, 3, H, W)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds._scenes import SHAPES, background, contrast, finish, shape_mask

KIND = "segmentation"
EXPORTER = "torch-dynamo"
SIZE, RARE = 32, 2


def pictures(seed: int, count: int) -> tuple[Array, Array]:
    """Pictures (count, 32, 32) uint8 and classes (count, 32, 32) uint8: 0 ground, 1 a large shape, 2 a small spot."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, SIZE, SIZE), np.uint8)
    labels = np.zeros((count, SIZE, SIZE), np.uint8)
    for index in range(count):
        picture = background(rng, SIZE, 3)
        for _ in range(rng.integers(1, 3)):
            x, y = rng.uniform(4, SIZE - 4, 2)
            covered = shape_mask(str(rng.choice(SHAPES[:4])), x, y, rng.uniform(5, 10), rng.uniform(0, 6), SIZE)
            picture[covered] += contrast(rng, 25, 70)
            labels[index][covered] = 1
        for _ in range(rng.integers(0, 3)):
            x, y = rng.uniform(3, SIZE - 3, 2)
            covered = shape_mask("disc", x, y, rng.uniform(1.2, 2.4), 0, SIZE)
            picture[covered] = picture[covered].mean() + contrast(rng, 40, 80)
            labels[index][covered] = RARE
        images[index] = finish(rng, picture)
    return images, labels


def network() -> Any:
    """The torch module, untrained."""
    import torch
    from torch import nn

    def block(inner: int, outer: int) -> nn.Module:
        layers: list[nn.Module] = []
        for width in (inner, outer):
            layers += [nn.Conv2d(width, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
        return nn.Sequential(*layers)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = block(1, 8), block(8, 16), block(16, 32)
            self.up_second, self.up_first = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
            self.join_second, self.join_first = block(32, 16), block(16, 8)
            self.head = nn.Conv2d(8, 3, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            first = self.first(image)
            second = self.second(nn.functional.max_pool2d(first, 2))
            third = self.third(nn.functional.max_pool2d(second, 2))
            second = self.join_second(torch.cat([self.up_second(third), second], 1))
            return self.head(self.join_first(torch.cat([self.up_first(second), first], 1)))

    return UNet()


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch

    from benchmarks.judge import training

    training.start(seed)
    images, labels = pictures(seed, 5000)
    inputs, wanted = torch.tensor(images[:, None] / np.float32(255)), torch.tensor(labels.astype(np.int64))
    net = network()
    weights = torch.tensor([1.0, 1.0, 3.0])

    def loss(image: Any, label: Any) -> Any:
        return torch.nn.functional.cross_entropy(net(image), label, weights)

    training.fit(net, loss, (inputs, wanted), epochs=3, batch=32, rate=6e-3)
    batch = {0: torch.export.Dim("batch")}
    training.export_dynamo(
        net, (inputs[:2],), folder / "model.onnx", inputs=["image"], outputs=["logits"], shapes=(batch,)
    )
    images, labels = pictures(seed + 1, 800)
    calib = pictures(seed + 2, 200)[0][:, None] / np.float32(255)
    np.savez_compressed(folder / "calib.npz", image=calib)
    np.savez_compressed(folder / "test.npz", images=images, labels=labels)


def units(run: Run, test: dict[str, Array]) -> Array:
    """Per picture: pixels found rightly, found, and present, of the rare class."""
    logits = run({"image": test["images"][:, None] / np.float32(255)})["logits"]
    found, present = logits.argmax(1) == RARE, test["labels"] == RARE
    return np.stack([(found & present).sum((1, 2)), found.sum((1, 2)), present.sum((1, 2))], 1)


def score(units: Array) -> float:
    """Dice of the rare class, x 100."""
    right, found, present = units.sum(axis=0)
    return 200 * float(right / max(found + present, 1))
