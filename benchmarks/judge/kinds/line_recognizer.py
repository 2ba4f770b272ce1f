"""A transformer that reads lines of handwritten digits: probabilities (N, T, 11), one row every second column.

The digits are scikit-learn's, written close together, some of them faint; class 10 is no digit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run

KIND = "recognizer"
EXPORTER = "torch-dynamo"
WIDTH, MOST, BLANK, INK = 48, 6, 10, 16


def lines(seed: int, count: int, glyphs: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Pictures (count, 8, 48) uint8 in 0..16, digits (count, 6) uint8 and then blanks, and (count, 24) by column."""
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, 8, WIDTH))
    digits = np.full((count, MOST), BLANK, np.uint8)
    columns = np.full((count, WIDTH // 2), BLANK, np.uint8)
    for index in range(count):
        left = int(rng.integers(0, 4))
        for slot in range(rng.integers(3, MOST + 1)):
            if left > WIDTH - 8:
                break
            chosen = rng.integers(len(glyphs))
            pictures[index, :, left : left + 8] += glyphs[chosen] * rng.uniform(0.3, 1)
            digits[index, slot] = columns[index, (left + 4) // 2] = labels[chosen]
            left += int(rng.integers(6, 10))
    noise = rng.normal(0, 3, pictures.shape) * (rng.random(pictures.shape) < 0.25)
    return np.clip(np.round(pictures + noise), 0, INK).astype(np.uint8), digits, columns


def network() -> Any:
    """The torch module, untrained."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            shape = (value.shape[0], value.shape[1], 3, self.heads, -1)
            query, key, content = self.mix(self.first(value)).reshape(shape).permute(2, 0, 3, 1, 4)
            share = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
            value = value + self.out((share @ content).transpose(1, 2).flatten(2))
            return value + self.narrow(nn.functional.gelu(self.widen(self.second(value))))

    class Reader(nn.Module):
        def __init__(self, width: int = 48) -> None:
            super().__init__()
            self.embed = nn.Conv2d(1, width, (8, 6), (1, 2), (0, 2))
            self.place = nn.Parameter(torch.randn(1, WIDTH // 2, width) * 0.1)
            self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 11)

        def logits(self, image: torch.Tensor) -> torch.Tensor:
            value = self.embed(image)[:, :, 0].transpose(1, 2) + self.place
            return self.head(self.norm(self.blocks(value)))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.logits(image).softmax(-1)

    return Reader()


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from sklearn.datasets import load_digits

    from benchmarks.judge import training

    training.start(seed)
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.images))
    trained, calibrated, tested = np.split(order, [1000, 1250])
    pictures, _, columns = lines(seed, 12000, data.images[trained], data.target[trained])
    net = network()
    arrays = training.tensors(pictures[:, None] / np.float32(INK), columns)
    weights = torch.ones(11)
    weights[BLANK] = 0.5

    def loss(image: Any, wanted: Any) -> Any:
        return torch.nn.functional.cross_entropy(net.logits(image).transpose(1, 2), wanted, weights)

    training.fit(net, loss, arrays, epochs=8, rate=4e-3)
    batch = {0: torch.export.Dim("batch")}
    training.export_dynamo(
        net, (arrays[0][:2],), folder / "model.onnx", inputs=["image"], outputs=["probabilities"], shapes=(batch,)
    )
    calib = lines(seed + 2, 256, data.images[calibrated], data.target[calibrated])[0]
    np.savez_compressed(folder / "calib.npz", image=calib[:, None] / np.float32(INK))
    pictures, digits, _ = lines(seed + 1, 1000, data.images[tested], data.target[tested])
    np.savez_compressed(folder / "test.npz", images=pictures, digits=digits)


def units(run: Run, test: dict[str, Array]) -> Array:
    """Per line: edits from what was read to what is written, and its length."""
    best = run({"image": test["images"][:, None] / np.float32(INK)})["probabilities"].argmax(2)
    rows = []
    for columns, digits in zip(best, test["digits"], strict=True):
        first = np.concatenate([[True], columns[1:] != columns[:-1]])
        read, written = columns[first & (columns != BLANK)], digits[digits != BLANK]
        rows.append((figures.edit_distance(read.tolist(), written.tolist()), len(written)))
    return np.array(rows)


def score(units: Array) -> float:
    """100 less the character error rate in percent."""
    return 100 - 100 * float(units[:, 0].sum() / units[:, 1].sum())
