"""A tagger of spectrograms (N, 1, 16, 24): eight sounds that come together or not at all, sigmoid in the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge.catalogue import Array, Run

KIND = "multi-label"
EXPORTER = "torch-torchscript"
BANDS, FRAMES, LEVELS = 16, 24, 11
SHARES = np.array([0.35, 0.3, 0.25, 0.2, 0.15, 0.12, 0.1, 0.06])


def patterns(rng: np.random.Generator) -> list[Array]:
    """One example (16, 24) of each sound, 0..1: hum, whistle, rise, fall, fast and slow beat, hiss, chirps."""
    band, frame = np.mgrid[:BANDS, :FRAMES].astype(float)
    start, low, high = rng.uniform(-3, 10), rng.uniform(0, 4), rng.uniform(9, 15)
    slope, phase = rng.uniform(0.5, 0.9), rng.uniform(0, 6.3)
    climb = slope * (frame - start)
    near = [np.exp(-((band - each) ** 2)) for each in (low, high, low + climb, high - climb)]
    beats = [(np.cos(2 * np.pi * frame / period + phase) > 0.6) * np.exp(-band / 8) for period in (3, 6)]
    hiss = (band > 10) * (np.abs(frame - start - 5) < 5) * 0.7
    chirps = np.exp(-((band - 8 - 3 * np.sin(2 * np.pi * frame / 8 + phase)) ** 2))
    return [near[0], near[1], near[2], near[3], *beats, hiss, chirps]


def spectrograms(seed: int, count: int) -> tuple[Array, Array]:
    """Levels (count, 16, 24) uint8 in 0..11 and tags (count, 8) bool."""
    rng = np.random.default_rng(seed)
    tags = rng.random((count, len(SHARES))) < SHARES
    energy = np.zeros((count, BANDS, FRAMES))
    for index in range(count):
        for sound, there in zip(patterns(rng), tags[index], strict=True):
            energy[index] += sound * there * rng.uniform(0.2, 0.8)
    noisy = energy + 0.4 * rng.gamma(1.0, 1.0, energy.shape)
    return np.clip(np.round(noisy * 5), 0, LEVELS).astype(np.uint8), tags


def network() -> Any:
    """The torch module, untrained."""
    import torch
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for inner, outer, stride in ((1, 24, 1), (24, 32, 2), (32, 48, 2)):
                layers += [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
            self.trunk = nn.Sequential(*layers)
            self.squeeze, self.excite = nn.Linear(48, 12), nn.Linear(12, 48)
            self.mix = nn.Conv2d(48, 48, (4, 1))  # the bands apart, the frames alike
            self.head = nn.Linear(48, len(SHARES))

        def logits(self, image: torch.Tensor) -> torch.Tensor:
            value = self.trunk(image)
            gate = self.excite(torch.relu(self.squeeze(value.mean((2, 3))))).sigmoid()
            mixed = torch.relu(self.mix(value * gate[:, :, None, None]))
            return self.head(mixed.amax((2, 3)))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.logits(image).sigmoid()

    return Tagger()


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch

    from benchmarks.judge import training

    training.start(seed)
    levels, tags = spectrograms(seed, 10000)
    net = network()
    data = training.tensors(levels[:, None] / np.float32(LEVELS), tags.astype(np.float32))

    def loss(image: Any, wanted: Any) -> Any:
        return torch.nn.functional.binary_cross_entropy_with_logits(net.logits(image), wanted)

    training.fit(net, loss, data, epochs=7, rate=4e-3)
    axes = {"spectrogram": {0: "batch"}, "tags": {0: "batch"}}
    training.export_torchscript(
        net, (data[0][:2],), folder / "model.onnx", inputs=["spectrogram"], outputs=["tags"], axes=axes
    )
    levels, tags = spectrograms(seed + 1, 1400)
    calib = spectrograms(seed + 2, 256)[0][:, None] / np.float32(LEVELS)
    np.savez_compressed(folder / "calib.npz", spectrogram=calib)
    np.savez_compressed(folder / "test.npz", levels=levels, tags=tags)


def units(run: Run, test: dict[str, Array]) -> Array:
    """Per sample: the eight true tags, then their probabilities."""
    found = run({"spectrogram": test["levels"][:, None] / np.float32(LEVELS)})["tags"]
    return np.concatenate([test["tags"], found], 1)


def average_precision(truth: Array, scores: Array) -> float:
    """The mean, over the samples that have the tag, of the precision down to each."""
    hits = truth[np.argsort(-scores, kind="stable")] > 0
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def score(units: Array) -> float:
    """Mean average precision of the tags, x 100."""
    count = len(SHARES)
    return 100 * float(np.mean([average_precision(units[:, tag], units[:, count + tag]) for tag in range(count)]))
