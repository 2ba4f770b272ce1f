"""An autoencoder of vibrations (N, 1, 64) that never saw a fault: what it rebuilds badly is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run

KIND = "anomaly"
EXPORTER = "torch-dynamo"
LENGTH, STEP = 64, 40


def vibrations(seed: int, count: int, faulty: float) -> tuple[Array, Array]:
    """Windows (count, 64) int8 in fortieths and whether each holds a fault (count,) bool."""
    rng = np.random.default_rng(seed)
    at = np.arange(LENGTH)
    speed, phase = rng.uniform(0.08, 0.16, (count, 1)), rng.uniform(0, 2 * np.pi, (count, 1))
    load = rng.uniform(0.3, 1, (count, 1))
    turn = 2 * np.pi * speed * at + phase
    window = np.sin(turn) + 0.5 * load * np.sin(2 * turn + 0.6) + 0.25 * load**2 * np.sin(3 * turn + 1.5)
    faults = rng.random(count) < faulty
    kind = rng.integers(0, 3, (count, 1))
    size = rng.uniform(0.3, 0.8, (count, 1))
    knocks = size * (np.sin(0.5 * turn) > 0.95) * rng.choice([-1, 1], (count, LENGTH))
    whine = 0.4 * size * np.sin(2 * np.pi * 0.37 * at + 3 * phase)
    limped = -size * 0.6 * np.sin(2 * turn + 0.6) * (at > 20)
    window += faults[:, None] * np.where(kind == 0, knocks, np.where(kind == 1, whine, limped))
    window += rng.normal(0, 0.1, window.shape) * rng.uniform(0.7, 1.3, (count, 1))
    return np.clip(np.round(window * STEP), -127, 127).astype(np.int8), faults


def network() -> Any:
    """The torch module, untrained."""
    from torch import nn

    def down(inner: int, outer: int) -> list[nn.Module]:
        return [nn.Conv1d(inner, outer, 5, 2, 2), nn.LeakyReLU(0.1)]

    def up(inner: int, outer: int) -> list[nn.Module]:
        return [nn.ConvTranspose1d(inner, outer, 4, 2, 1), nn.LeakyReLU(0.1)]

    middle = [nn.Flatten(), nn.Linear(256, 6), nn.Linear(6, 256), nn.LeakyReLU(0.1), nn.Unflatten(1, (32, 8))]
    encoder = [*down(1, 16), *down(16, 24), *down(24, 32)]
    return nn.Sequential(*encoder, *middle, *up(32, 24), *up(24, 16), *up(16, 16), nn.Conv1d(16, 1, 5, padding=2))


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch

    from benchmarks.judge import training

    training.start(seed)
    net = network()
    data = training.tensors(vibrations(seed, 12_000, 0)[0][:, None] / np.float32(STEP))
    training.fit(net, lambda window: ((net(window) - window) ** 2).mean(), data, epochs=25, rate=3e-3)
    batch = {0: torch.export.Dim("batch")}
    training.export_dynamo(
        net, (data[0][:2],), folder / "model.onnx", inputs=["window"], outputs=["rebuilt"], shapes=(batch,)
    )
    windows, faults = vibrations(seed + 1, 2500, 0.3)
    np.savez_compressed(folder / "calib.npz", window=vibrations(seed + 2, 300, 0)[0][:, None] / np.float32(STEP))
    np.savez_compressed(folder / "test.npz", windows=windows, faults=faults)


def units(run: Run, test: dict[str, Array]) -> Array:
    """Per window: whether it holds a fault, and how badly it is rebuilt."""
    window = test["windows"][:, None] / np.float32(STEP)
    error = ((run({"window": window})["rebuilt"] - window) ** 2).mean((1, 2))
    return np.stack([test["faults"], error], 1)


def score(units: Array) -> float:
    """Area under the ROC curve of the error, x 100."""
    return figures.auc(units[:, 0], units[:, 1])
