"""Two heads on one trunk: the class of a shape (logits) and where and how large it is (three numbers)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds._scenes import SHAPES, background, contrast, finish, shape_mask

KIND = "multi-task"
EXPORTER = "torch-dynamo"
SIZE = 24


def pictures(seed: int, count: int) -> tuple[Array, Array, Array]:
    """Pictures (count, 24, 24) uint8, classes (count,) uint8, and across, down, radius (count, 3) float16 in 0..1."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, len(SHAPES), count).astype(np.uint8)
    radius = rng.uniform(3.5, 9, (count, 1))
    middle = radius + rng.random((count, 2)) * (SIZE - 2 * radius)
    images = np.zeros((count, SIZE, SIZE), np.uint8)
    for index, kind in enumerate(classes):
        covered = shape_mask(SHAPES[kind], *middle[index], radius[index, 0], rng.uniform(0, 6.3), SIZE)
        images[index] = finish(rng, background(rng, SIZE, 4) + contrast(rng, 20, 60) * covered, specks=0.12)
    return images, classes, (np.concatenate([middle, radius], 1) / SIZE).astype(np.float16)


def network() -> Any:
    """The torch module, untrained."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
            )

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return torch.relu(value + self.body(value))

    def down(inner: int, outer: int) -> list[nn.Module]:
        return [nn.Conv2d(inner, outer, 3, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(*down(1, 24), Residual(24), *down(24, 40), Residual(40))
            self.classify = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, len(SHAPES)))
            self.measure = nn.Sequential(
                nn.Conv2d(40, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 24), nn.ReLU(), nn.Linear(24, 3)
            )

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            value = self.trunk(image)
            return self.classify(value), self.measure(value)

    return TwoHeads()


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch

    from benchmarks.judge import training

    training.start(seed)
    images, classes, geometry = pictures(seed, 9000)
    net = network()
    data = training.tensors(images[:, None] / np.float32(255), classes, geometry)

    def loss(image: Any, kind: Any, place: Any) -> Any:
        logits, found = net(image)
        return torch.nn.functional.cross_entropy(logits, kind) + 30 * ((found - place) ** 2).mean()

    training.fit(net, loss, data, epochs=8, rate=4e-3)
    batch = {0: torch.export.Dim("batch")}
    outputs = ["logits", "geometry"]
    training.export_dynamo(
        net, (data[0][:2],), folder / "model.onnx", inputs=["image"], outputs=outputs, shapes=(batch,)
    )
    images, classes, geometry = pictures(seed + 1, 1500)
    calib = pictures(seed + 2, 256)[0][:, None] / np.float32(255)
    np.savez_compressed(folder / "calib.npz", image=calib)
    np.savez_compressed(folder / "test.npz", images=images, classes=classes, geometry=geometry)


def units(run: Run, test: dict[str, Array]) -> Array:
    """Per picture: 1 where the winner is right, then the three true numbers and the three found."""
    found = run({"image": test["images"][:, None] / np.float32(255)})
    right = found["logits"].argmax(1) == test["classes"]
    return np.concatenate([right[:, None], test["geometry"].astype(np.float32), found["geometry"]], 1)


def score(units: Array) -> float:
    """Mean of the accuracy in percent and the mean R2 x 100."""
    explained = [figures.r2(units[:, 1 + index], units[:, 4 + index]) for index in range(3)]
    return (figures.percent(units[:, 0]) + float(np.mean(explained))) / 2
