"""A line of characters is read by convolutions, a GRU in both directions and CTC: 100 minus the error rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds import _glyphs

KIND = "recognizer"
EXPORTER = "torch-torchscript"
HEIGHT, WIDTH, LONGEST, STATE = 12, 64, 8, 40
CLASSES = len(_glyphs.FONT) + 1  # 0 is the blank


def _made(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Lines (count, HEIGHT, WIDTH) in grey levels and characters (count, LONGEST) from 1, 0 behind the last."""
    lines = np.zeros((count, HEIGHT, WIDTH))
    lengths = rng.integers(4, LONGEST + 1, count)
    characters = rng.integers(1, CLASSES, (count, LONGEST))
    characters[np.arange(LONGEST) >= lengths[:, None]] = 0
    place = rng.integers(0, 3, count)
    for i in range(LONGEST):
        drawn = _glyphs.drawn(rng, np.maximum(characters[:, i] - 1, 0), HEIGHT, 9, slant=0.15, scale=1.1)
        for line in np.flatnonzero((characters[:, i] > 0) & (place < WIDTH - 8)):
            room = lines[line, :, place[line] : place[line] + 9]
            np.maximum(room, drawn[line, :, : room.shape[1]], out=room)
        place += rng.integers(6, 9, count)
    return _glyphs.in_levels(rng, lines, 0.18), characters.astype(np.uint8)


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    lines, characters = _made(rng, 5000)

    def layer(inner: int, outer: int, pool: tuple[int, int]) -> list[nn.Module]:
        return [nn.Conv2d(inner, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(), nn.MaxPool2d(pool)]

    class Recognizer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eyes = nn.Sequential(*layer(1, 16, (2, 2)), *layer(16, 24, (2, 1)), *layer(24, 32, (3, 1)))
            self.reads = nn.GRU(32, STATE, bidirectional=True)
            self.head = nn.Linear(2 * STATE, CLASSES)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            columns = self.eyes(image).squeeze(2).permute(2, 0, 1)
            return self.head(self.reads(columns)[0]).permute(1, 0, 2)

    model = Recognizer()
    data = training.tensors(_glyphs.as_input(lines), characters)

    def loss(lines: torch.Tensor, characters: torch.Tensor) -> torch.Tensor:
        logs = model(lines).log_softmax(dim=-1).permute(1, 0, 2)
        steps = torch.full((len(lines),), logs.shape[0])
        return nn.functional.ctc_loss(logs, characters, steps, (characters > 0).sum(dim=1), zero_infinity=True)

    training.fit(model, loss, data, epochs=8, rate=5e-3)
    axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
    training.export_torchscript(
        model, (data[0][:2],), folder / "model.onnx", inputs=["image"], outputs=["logits"], axes=axes
    )
    calibration, test = _made(rng, 200), _made(rng, 700)
    np.savez_compressed(folder / "calib.npz", image=_glyphs.as_input(calibration[0]))
    np.savez_compressed(folder / "test.npz", image=test[0], characters=test[1])


def units(run: Run, test: dict[str, Array]) -> Array:
    """(lines, 2): characters in error, and characters."""
    best = run({"image": _glyphs.as_input(test["image"])})["logits"].argmax(axis=2)
    new = np.diff(best, axis=1, prepend=0) != 0
    found = []
    for codes, kept, truth in zip(best, new, test["characters"], strict=True):
        wanted = truth[truth > 0].tolist()
        found.append([figures.edit_distance(wanted, codes[kept & (codes > 0)].tolist()), len(wanted)])
    return np.array(found)


def score(units: Array) -> float:
    """100 minus the character error rate in percent."""
    return 100 * (1 - float(units[:, 0].sum() / units[:, 1].sum()))
