"""A regression whose values are 10,000 +- 0.5: what is to be predicted is a 20,000th of what is put out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run

KIND = "regression"
EXPORTER = "torch-torchscript"
OFFSET, SPREAD = 10_000.0, 0.5


def samples(seed: int, count: int) -> tuple[Array, Array]:
    """Features (count, 12) float16, skewed and of different sizes, and the values' deviation from the offset."""
    rng = np.random.default_rng(seed)
    base = rng.random((count, 12))
    signal = np.sin(np.pi * base[:, 0] * base[:, 1]) + 2 * (base[:, 2] - 0.5) ** 2 + base[:, 3] + 0.5 * base[:, 4]
    signal += np.where(base[:, 5] > 0.7, base[:, 6], 0.3 * base[:, 7])
    values = (signal - 1.83) / 0.55 * SPREAD + rng.normal(0, 0.35 * SPREAD, count)
    features = base * np.array([1, 1, 10, 10, 100, 1, 1, 1, 0.1, 5, 1, 50])
    return features.astype(np.float16), values.astype(np.float32)


def network(mean: Array, deviation: Array) -> Any:
    """The torch module, untrained."""
    import torch
    from torch import nn

    class Regressor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor(mean))
            self.register_buffer("deviation", torch.tensor(deviation))
            self.body = nn.Sequential(
                nn.Linear(12, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU()
            )
            self.head = nn.Linear(64, 1)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.head(self.body((features - self.mean) / self.deviation))[:, 0] * SPREAD + OFFSET

    return Regressor()


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch

    from benchmarks.judge import training

    training.start(seed)
    features, deviations = samples(seed, 12000)
    inputs, wanted = torch.tensor(features.astype(np.float32)), torch.tensor(deviations)
    net = network(inputs.numpy().mean(0), inputs.numpy().std(0))

    def loss(given: Any, deviation: Any) -> Any:
        return ((net(given) - OFFSET - deviation) ** 2).mean()

    training.fit(net, loss, (inputs, wanted), epochs=30, batch=128, rate=3e-3)
    axes = {"features": {0: "batch"}, "value": {0: "batch"}}
    training.export_torchscript(
        net, (inputs[:2],), folder / "model.onnx", inputs=["features"], outputs=["value"], axes=axes
    )
    features, deviations = samples(seed + 1, 3000)
    calib = samples(seed + 2, 400)[0].astype(np.float32)
    np.savez_compressed(folder / "calib.npz", features=calib)
    np.savez_compressed(folder / "test.npz", features=features, deviations=deviations)


def units(run: Run, test: dict[str, Array]) -> Array:
    """Per sample: the true and the found deviation from 10,000."""
    value = run({"features": test["features"].astype(np.float32)})["value"]
    return np.stack([test["deviations"], value.astype(np.float64) - OFFSET], 1)


def score(units: Array) -> float:
    """R2 x 100."""
    return figures.r2(units[:, 0], units[:, 1])
