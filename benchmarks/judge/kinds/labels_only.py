"""A classifier of movements (N, 3, 32) that puts out nothing but the number of the class, int64 from ArgMax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run

KIND = "labels"
EXPORTER = "torch-torchscript"
CLASSES, LENGTH, STEP = 8, 32, 8


def movements(seed: int, count: int) -> tuple[Array, Array]:
    """Accelerations (count, 3, 32) int8 in eighths, and classes (count,) uint8."""
    rng = np.random.default_rng(seed)
    manner = np.random.default_rng(5)  # how each class moves, the same in every set
    rate, phases = manner.uniform(1.5, 4.5, CLASSES), manner.uniform(0, 6.3, (CLASSES, 2, 3))
    reach, tilt = manner.uniform(0.2, 1, (CLASSES, 2, 3)), manner.normal(0, 0.3, (CLASSES, 3))
    labels = rng.integers(0, CLASSES, count)
    pace = rate[labels] * rng.uniform(0.75, 1.3, count)
    at = np.arange(LENGTH) / LENGTH
    turn = 2 * np.pi * (pace[:, None] * at + rng.random((count, 1)))
    moves = np.zeros((count, 3, LENGTH))
    for harmonic in range(2):
        wave = np.sin((harmonic + 1) * turn[:, None] + phases[labels, harmonic][:, :, None])
        moves += reach[labels, harmonic][:, :, None] * wave * rng.uniform(0.4, 1.2, (count, 1, 1))
    moves += (tilt[labels] + rng.normal(0, 0.3, (count, 3)))[:, :, None] + rng.normal(0, 0.85, moves.shape)
    return np.clip(np.round(moves * STEP), -127, 127).astype(np.int8), labels.astype(np.uint8)


def network() -> Any:
    """The torch module, untrained."""
    from torch import nn

    layers: list[nn.Module] = [nn.Conv1d(3, 32, 5, padding=2, bias=False), nn.BatchNorm1d(32), nn.ReLU()]
    for inner, outer in ((32, 64), (64, 96)):
        layers += [nn.Conv1d(inner, inner, 5, 2, 2, groups=inner, bias=False), nn.BatchNorm1d(inner), nn.ReLU()]
        layers += [nn.Conv1d(inner, outer, 1, bias=False), nn.BatchNorm1d(outer), nn.ReLU()]
    layers += [nn.Conv1d(96, 64, 3, padding=1, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch

    from benchmarks.judge import training

    training.start(seed)
    moves, labels = movements(seed, 12_000)
    net = network()
    data = training.tensors(moves / np.float32(STEP), labels)
    training.fit(net, lambda x, y: torch.nn.functional.cross_entropy(net(x), y), data, epochs=9, rate=4e-3)

    class Labelled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, movement: torch.Tensor) -> torch.Tensor:
            return self.net(movement).argmax(1)

    axes = {"movement": {0: "batch"}, "label": {0: "batch"}}
    training.export_torchscript(
        Labelled(), (data[0][:2],), folder / "model.onnx", inputs=["movement"], outputs=["label"], axes=axes
    )
    moves, labels = movements(seed + 1, 2500)
    np.savez_compressed(folder / "calib.npz", movement=movements(seed + 2, 300)[0] / np.float32(STEP))
    np.savez_compressed(folder / "test.npz", movements=moves, labels=labels)


def units(run: Run, test: dict[str, Array]) -> Array:
    """(movements, 1): 1 where the label is right."""
    return (run({"movement": test["movements"] / np.float32(STEP)})["label"] == test["labels"])[:, None]


def score(units: Array) -> float:
    """Accuracy in percent."""
    return figures.percent(units)
