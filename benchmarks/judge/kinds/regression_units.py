"""Four values of different units in one output: pascal (100,000 +- 2,000), degrees, a share of 1, and 1e-3 metres.

The readings of 16 instruments pass through residual blocks with LayerNorm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run

KIND = "regression"
EXPORTER = "torch-torchscript"
CENTRE = np.array([100_000, 15, 0.5, 0.002], np.float32)
SPREAD = np.array([2_000, 8, 0.2, 0.001], np.float32)


def samples(seed: int, count: int) -> tuple[Array, Array]:
    """Readings (count, 16) float16 and standardized values (count, 4) float32."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).normal(0, 0.6, (6, 16))  # the instruments, the same in every set
    hidden = rng.normal(0, 1, (count, 6))
    readings = np.tanh(hidden @ mixing) * np.linspace(1, 8, 16) + rng.normal(0, 0.15, (count, 16))
    first = 0.8 * hidden[:, 0] + 0.6 * np.sin(1.5 * hidden[:, 1])
    second = np.abs(hidden[:, 2]) * 1.3 - 1 + 0.5 * hidden[:, 0]
    third = np.tanh(hidden[:, 3] + hidden[:, 4] * hidden[:, 0]) * 1.2
    fourth = np.exp(0.6 * hidden[:, 5]) - 1.2
    return readings.astype(np.float16), np.stack([first, second, third, fourth], 1).astype(np.float32)


def network() -> Any:
    """The torch module, untrained."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
            )

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return value + self.body(value)

    class Regressor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(16, 64), Block(64), Block(64), nn.LayerNorm(64), nn.Linear(64, 4))
            self.register_buffer("centre", torch.tensor(CENTRE))
            self.register_buffer("spread", torch.tensor(SPREAD))

        def forward(self, readings: torch.Tensor) -> torch.Tensor:
            return self.body(readings) * self.spread + self.centre

    return Regressor()


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch

    from benchmarks.judge import training

    training.start(seed)
    readings, values = samples(seed, 12000)
    inputs, wanted = torch.tensor(readings.astype(np.float32)), torch.tensor(values)
    net = network()

    def loss(given: Any, value: Any) -> Any:
        return ((net.body(given) - value) ** 2).mean()

    training.fit(net, loss, (inputs, wanted), epochs=40, batch=128, rate=3e-3)
    axes = {"readings": {0: "batch"}, "values": {0: "batch"}}
    training.export_torchscript(
        net, (inputs[:2],), folder / "model.onnx", inputs=["readings"], outputs=["values"], axes=axes
    )
    readings, values = samples(seed + 1, 3000)
    calib = samples(seed + 2, 300)[0].astype(np.float32)
    np.savez_compressed(folder / "calib.npz", readings=calib)
    np.savez_compressed(folder / "test.npz", readings=readings, standardized=values.astype(np.float16))


def units(run: Run, test: dict[str, Array]) -> Array:
    """Per sample: the four true values, then the four found ones, standardized."""
    found = run({"readings": test["readings"].astype(np.float32)})["values"].astype(np.float64)
    return np.concatenate([test["standardized"].astype(np.float64), (found - CENTRE) / SPREAD], 1)


def score(units: Array) -> float:
    """Mean of the four R2, x 100."""
    return float(np.mean([figures.r2(units[:, index], units[:, 4 + index]) for index in range(4)]))
