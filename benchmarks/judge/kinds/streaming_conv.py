"""A causal convolution network that takes four frames and the frames that each layer still needs.

It tells which of five sounds is spoken, if any; share of right frames over sequences on its own caches.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds import _frames

KIND = "stream"
EXPORTER = "torch-dynamo"
LENGTH, CHUNK, WIDTH = 48, 4, 48
CACHES = {"cache_0": (_frames.BANDS, 4), "cache_1": (WIDTH, 8), "cache_2": (WIDTH, 4)}  # channels, frames kept


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    frames, spoken = _frames.made(rng, 5000, LENGTH, loud=1.5)

    class Recognizer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                [
                    nn.Conv1d(_frames.BANDS, WIDTH, 5),
                    nn.Conv1d(WIDTH, WIDTH, 5, dilation=2, groups=4),
                    nn.Conv1d(WIDTH, WIDTH, 3, dilation=2),
                ]
            )
            self.mixing = nn.ModuleList([nn.Conv1d(WIDTH, WIDTH, 1) for _ in self.layers])
            self.norms = nn.ModuleList([nn.BatchNorm1d(WIDTH) for _ in self.layers])
            self.head = nn.Conv1d(WIDTH, _frames.SOUNDS + 1, 1)

        def forward(
            self, x: torch.Tensor, cache_0: torch.Tensor, cache_1: torch.Tensor, cache_2: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            kept = []
            for i, cache in enumerate((cache_0, cache_1, cache_2)):
                whole = torch.cat([cache, x], dim=2)
                kept.append(whole[:, :, -cache.shape[2] :])
                made = self.norms[i](self.mixing[i](self.layers[i](whole).relu())).relu()
                x = made if i == 0 else x + made
            return self.head(x), *kept

    model = Recognizer()
    data = training.tensors(_frames.as_input(frames.transpose(0, 2, 1)), spoken)

    def zeros(count: int) -> list[torch.Tensor]:
        return [torch.zeros(count, *shape) for shape in CACHES.values()]

    def loss(frames: torch.Tensor, spoken: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(frames, *zeros(len(frames)))[0], spoken)

    training.fit(model, loss, data, epochs=10, rate=4e-3)
    batch = torch.export.Dim("batch")
    training.export_dynamo(
        model,
        (data[0][:2, :, :CHUNK], *zeros(2)),
        folder / "model.onnx",
        inputs=["x", *CACHES],
        outputs=["scores", *(f"new_{name}" for name in CACHES)],
        shapes=tuple({0: batch} for _ in range(4)),
    )
    _write_chunks(folder, _frames.as_input(_frames.made(rng, 200, LENGTH, loud=1.5)[0]))
    test = _frames.made(rng, 360, LENGTH, loud=1.5)
    np.savez_compressed(folder / "test.npz", frames=test[0], spoken=test[1])


def _write_chunks(folder: Path, frames: Array) -> None:
    """One chunk a sequence, the sixth, with the caches that the model had there."""
    from benchmarks.judge.scoring import runner

    steps = _run_through(runner(folder / "model.onnx"), frames)
    caches = {name: np.round(value * 32) / 32 for name, value in steps[5][1].items()}
    chunk = frames[:, 5 * CHUNK : 6 * CHUNK].transpose(0, 2, 1)
    np.savez_compressed(folder / "calib.npz", x=np.ascontiguousarray(chunk), allow_pickle=False, **caches)


def _run_through(run: Run, frames: Array) -> list[tuple[Array, dict[str, Array]]]:
    """Scores of every chunk, and the caches before it."""
    caches = {name: np.zeros((len(frames), *shape), np.float32) for name, shape in CACHES.items()}
    found = []
    for start in range(0, frames.shape[1], CHUNK):
        chunk = np.ascontiguousarray(frames[:, start : start + CHUNK].transpose(0, 2, 1))
        outputs = run({"x": chunk, **caches})
        found.append((outputs["scores"], caches))
        caches = {name: outputs[f"new_{name}"] for name in CACHES}
    return found


def units(run: Run, test: dict[str, Array]) -> Array:
    """(sequences, 1): share of right frames on the model's own caches."""
    scores = [scores for scores, _ in _run_through(run, _frames.as_input(test["frames"]))]
    right = np.concatenate(scores, axis=2).argmax(axis=1) == test["spoken"]
    return np.asarray(right.mean(axis=1, keepdims=True))


def score(units: Array) -> float:
    """Share of right frames in percent."""
    return figures.percent(units)
