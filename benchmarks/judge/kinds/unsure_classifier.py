"""A network with residual layers that is right on about half of noisy readings of forty classes: accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run

KIND = "classifier"
EXPORTER = "torch-torchscript"
CLASSES, FEATURES, HIDDEN_CAUSES = 40, 40, 14
STEP = 16  # levels a unit of the readings


class _World:
    """Readings are a smooth function of hidden causes, which gather around one place a class."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.places = rng.normal(0, 1, (CLASSES, HIDDEN_CAUSES))
        self.mix = rng.normal(0, 0.6, (HIDDEN_CAUSES, 48))
        self.out = rng.normal(0, 0.2, (48, FEATURES))

    def made(self, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
        labels = rng.integers(0, CLASSES, count)
        causes = self.places[labels] + rng.normal(0, 1.35, (count, HIDDEN_CAUSES))
        readings = np.tanh(causes @ self.mix) @ self.out + rng.normal(0, 0.25, (count, FEATURES))
        return np.clip(np.round(readings * STEP), -127, 127).astype(np.int8), labels


def _as_input(levels: Array) -> Array:
    return np.asarray(levels.astype(np.float32) / STEP)


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    world = _World(rng)
    readings, labels = world.made(rng, 24000)

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.up, self.down = nn.Linear(width, width * 2), nn.Linear(width * 2, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(nn.functional.gelu(self.up(self.norm(x))))

    model = nn.Sequential(
        nn.Linear(FEATURES, 80), Block(80), Block(80), nn.LayerNorm(80), nn.Dropout(0.1), nn.Linear(80, CLASSES)
    )
    data = training.tensors(_as_input(readings), labels)
    training.fit(model, lambda x, y: nn.functional.cross_entropy(model(x), y), data, epochs=14, batch=128)
    axes = {"readings": {0: "N"}, "scores": {0: "N"}}
    training.export_torchscript(
        model, (data[0][:2],), folder / "model.onnx", inputs=["readings"], outputs=["scores"], axes=axes
    )
    calibration, test = world.made(rng, 300), world.made(rng, 4000)
    np.savez_compressed(folder / "calib.npz", readings=_as_input(calibration[0]))
    np.savez_compressed(folder / "test.npz", readings=test[0], label=test[1].astype(np.uint8))


def units(run: Run, test: dict[str, Array]) -> Array:
    """(readings, 1): 1 where the winner is right."""
    scores = run({"readings": _as_input(test["readings"])})["scores"]
    return np.asarray((scores.argmax(axis=1) == test["label"])[:, None])


def score(units: Array) -> float:
    """Accuracy in percent."""
    return figures.percent(units)
