"""A small depthwise network that reads digits, and is sure of most: accuracy in percent."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds import _glyphs

KIND = "classifier"
EXPORTER = "torch-dynamo"


def _made(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    labels = rng.integers(0, 10, count)
    return _glyphs.in_levels(rng, _glyphs.drawn(rng, labels, 16, 16, slant=0.22, scale=1.6), 0.3), labels


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    pictures, labels = _made(rng, 16000)

    def block(inner: int, outer: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU6(),
        )

    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        block(32, 64, 1),
        block(64, 96, 2),
        block(96, 128, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    data = training.tensors(_glyphs.as_input(pictures), labels)
    training.fit(model, lambda x, y: nn.functional.cross_entropy(model(x), y), data, epochs=7)
    batch = torch.export.Dim("batch")
    training.export_dynamo(
        model,
        (data[0][:2],),
        folder / "model.onnx",
        inputs=["image"],
        outputs=["logits"],
        shapes=({0: batch},),
    )
    calibration, test = _made(rng, 256), _made(rng, 2000)
    np.savez_compressed(folder / "calib.npz", image=_glyphs.as_input(calibration[0]))
    np.savez_compressed(folder / "test.npz", image=test[0], label=test[1].astype(np.uint8))


def units(run: Run, test: dict[str, Array]) -> Array:
    """(pictures, 1): 1 where the winner is right."""
    logits = run({"image": _glyphs.as_input(test["image"])})["logits"]
    return np.asarray((logits.argmax(axis=1) == test["label"])[:, None])


def score(units: Array) -> float:
    """Accuracy in percent."""
    return figures.percent(units)
