"""Heartbeats of four kinds, the one that matters in two of a hundred: macro F1."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run

KIND = "rare class"
EXPORTER = "torch-torchscript"
LENGTH, STEP = 56, 20
SHARES = (0.68, 0.18, 0.12, 0.02)


def _made(rng: np.random.Generator, count: int, shares: tuple[float, ...] = SHARES) -> tuple[Array, Array]:
    """Normal, wide, without the first wave, and with the stretch after the peak lifted a little."""
    labels = rng.choice(len(shares), count, p=shares)
    time = np.linspace(0, 1, LENGTH)

    def wave(at: float, width: Array, height: Array) -> Array:
        place = at + rng.normal(0, 0.015, (count, 1))
        return np.asarray(height * np.exp(-(((time - place) / width) ** 2)))

    def uniform(low: float, high: float) -> Array:
        return rng.uniform(low, high, (count, 1))

    kind = labels[:, None]
    first = wave(0.22, uniform(0.03, 0.06), uniform(0.1, 0.3) * (kind != 2))
    peak = wave(0.42, uniform(0.015, 0.024) * np.where(kind == 1, 1.5, 1), uniform(0.8, 1.3))
    dip = wave(0.47, uniform(0.01, 0.02), uniform(-0.4, -0.1))
    last = wave(0.72, uniform(0.06, 0.1), uniform(0.2, 0.45))
    lift = uniform(0.1, 0.25) * (kind == 3) / (1 + np.exp(-(time - 0.5) * 60)) / (1 + np.exp((time - 0.68) * 40))
    drift = uniform(-0.2, 0.2) * np.sin(2 * np.pi * (time * uniform(0.3, 0.8) + uniform(0, 1)))
    beat = first + peak + dip + last + lift + drift + rng.normal(0, 0.06, (count, LENGTH))
    return np.clip(np.round(beat * STEP), -127, 127).astype(np.int8), labels


def _as_input(levels: Array) -> Array:
    return np.asarray(levels[:, None].astype(np.float32) / STEP)


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    beats, labels = _made(rng, 16000)

    def layer(inner: int, outer: int, width: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv1d(inner, outer, width, stride, width // 2, bias=False),
            nn.BatchNorm1d(outer),
            nn.LeakyReLU(0.1),
        ]

    layers = [*layer(1, 24, 7, 1), *layer(24, 40, 5, 2), *layer(40, 48, 5, 1), *layer(48, 64, 3, 2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(128, 4), nn.Softmax(dim=1))
    logits = model[:-1]
    data = training.tensors(_as_input(beats), labels)
    training.fit(model, lambda x, y: nn.functional.cross_entropy(logits(x), y), data, epochs=6)
    axes = {"beat": {0: "batch"}, "probability": {0: "batch"}}
    training.export_torchscript(
        model, (data[0][:2],), folder / "model.onnx", inputs=["beat"], outputs=["probability"], axes=axes
    )
    calibration, test = _made(rng, 300), _made(rng, 4000)
    np.savez_compressed(folder / "calib.npz", beat=_as_input(calibration[0]))
    np.savez_compressed(folder / "test.npz", beat=test[0], label=test[1].astype(np.uint8))


def units(run: Run, test: dict[str, Array]) -> Array:
    """(beats, 2): the kind it is and the kind found."""
    found = run({"beat": _as_input(test["beat"])})["probability"].argmax(axis=1)
    return np.stack([test["label"], found], axis=1)


def score(units: Array) -> float:
    """Macro F1, times 100."""
    return figures.macro_f1(units[:, 0], units[:, 1])
