"""A denoiser of signals (N, 1, 128), half of which are 100 times quieter; each is to be cleaned alike, in decibels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge.catalogue import Array, Run

KIND = "denoiser"
EXPORTER = "torch-torchscript"
LENGTH = 128


def signals(seed: int, count: int) -> tuple[Array, Array]:
    """Noisy and clean signals (count, 128) float16: chirps in bursts, every other one 100 times quieter."""
    rng = np.random.default_rng(seed)
    at = np.arange(LENGTH) / LENGTH
    clean = np.zeros((count, LENGTH))
    for _ in range(2):
        rate, bend, phase = (
            rng.uniform(2, 14, (count, 1)),
            rng.uniform(-4, 4, (count, 1)),
            rng.uniform(0, 6.3, (count, 1)),
        )
        centre, width = rng.uniform(0.2, 0.8, (count, 1)), rng.uniform(0.1, 0.4, (count, 1))
        burst = np.exp(-(((at - centre) / width) ** 2))
        clean += rng.uniform(0.3, 1, (count, 1)) * burst * np.sin(2 * np.pi * (rate * at + bend * at**2) + phase)
    noisy = clean + rng.normal(0, 0.3, clean.shape)
    size = np.where(np.arange(count) % 2, 0.01, 1)[:, None]
    return (noisy * size).astype(np.float16), (clean * size).astype(np.float16)


def network() -> Any:
    """The torch module, untrained."""
    import torch
    from torch import nn

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Sequential(nn.Conv1d(1, 32, 9, padding=4), nn.ReLU())
            self.blocks = nn.ModuleList(
                [
                    nn.Sequential(
                        nn.Conv1d(32, 32, 5, padding=2 * step, dilation=step), nn.ReLU(), nn.Conv1d(32, 32, 1)
                    )
                    for step in (1, 2, 4, 8)
                ]
            )
            self.decode = nn.Conv1d(32, 1, 9, padding=4)
            for layer in self.modules():
                if isinstance(layer, nn.Conv1d):
                    nn.init.zeros_(layer.bias)

        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            value = self.encode(noisy)
            for block in self.blocks:
                value = value + block(value)
            return noisy - self.decode(value)

    return Denoiser()


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch

    from benchmarks.judge import training

    training.start(seed)
    noisy, clean = (torch.tensor(each[:, None].astype(np.float32)) for each in signals(seed, 8000))
    net = network()

    def loss(given: Any, wanted: Any) -> Any:
        error = ((net(given) - wanted) ** 2).mean((1, 2))
        return (error / (wanted**2).mean((1, 2)) + 1e-3).log().mean()

    training.fit(net, loss, (noisy, clean), epochs=9)
    axes = {"noisy": {0: "batch"}, "clean": {0: "batch"}}
    training.export_torchscript(
        net, (noisy[:2],), folder / "model.onnx", inputs=["noisy"], outputs=["clean"], axes=axes
    )
    tested, wanted = signals(seed + 1, 400)
    calib = signals(seed + 2, 200)[0][:, None].astype(np.float32)
    np.savez_compressed(folder / "calib.npz", noisy=calib)
    np.savez_compressed(folder / "test.npz", noisy=tested, clean=wanted)


def units(run: Run, test: dict[str, Array]) -> Array:
    """Per signal: signal to noise in decibels, (n, 1)."""
    wanted = test["clean"].astype(np.float64)
    error = run({"noisy": test["noisy"][:, None].astype(np.float32)})["clean"][:, 0] - wanted
    return 10 * np.log10((wanted**2).mean(1) / np.maximum((error**2).mean(1), 1e-15))[:, None]


def score(units: Array) -> float:
    """Mean signal to noise in decibels, x 5."""
    return 5 * float(units.mean())
