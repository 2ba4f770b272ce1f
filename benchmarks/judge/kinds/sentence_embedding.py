"""Sentences become unit vectors by one layer of attention and a masked mean: Spearman's correlation.

Words come from topics; how alike two sentences are is the cosine of their mixtures of topics.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run

KIND = "embedding"
EXPORTER = "torch-torchscript"
WORDS, TOPICS, LONGEST, WIDTH = 500, 10, 16, 40


class _World:
    def __init__(self, rng: np.random.Generator) -> None:
        frequency = rng.gamma(0.7, 1, WORDS)
        frequency[0] = 0  # padding
        topics = rng.dirichlet(np.full(TOPICS, 0.06), WORDS).T * frequency
        self.topics = topics / topics.sum(axis=1, keepdims=True)

    def made(self, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
        """Words (count, 2, LONGEST) uint16, zero where padded, and how alike the two are."""
        first = rng.dirichlet(np.full(TOPICS, 0.25), count)
        other = rng.dirichlet(np.full(TOPICS, 0.25), count)
        share = rng.random((count, 1))
        mixtures = np.stack([first, share * first + (1 - share) * other], axis=1)
        sums = (mixtures @ self.topics).cumsum(axis=2)
        draws = rng.random((count, 2, LONGEST))
        flat = zip(sums.reshape(-1, WORDS), draws.reshape(-1, LONGEST), strict=True)
        words = np.stack([np.searchsorted(shares, draw) for shares, draw in flat]).reshape(draws.shape)
        words[np.arange(LONGEST) >= rng.integers(7, LONGEST + 1, (count, 2, 1))] = 0
        a, b = mixtures[:, 0], mixtures[:, 1]
        alike = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        return np.clip(words, 0, WORDS - 1).astype(np.uint16), alike.astype(np.float32)


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    world = _World(rng)
    words, alike = world.made(rng, 40000)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(WORDS, WIDTH)
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.norm, self.drop = nn.LayerNorm(WIDTH), nn.Dropout(0.1)
            nn.init.normal_(self.words.weight, 0, 0.3)
            self.feed = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            x, mask = self.drop(self.words(input_ids)), attention_mask.float()
            scores = self.q(x) @ self.k(x).transpose(1, 2) / WIDTH**0.5 + (mask[:, None] - 1) * 1e4
            x = self.norm(x + scores.softmax(dim=-1) @ self.v(x))
            x = x + self.feed(x)
            mean = (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            return nn.functional.normalize(mean, dim=1)

    model = Encoder()
    data = training.tensors(words, alike)

    def loss(words: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
        left, right = (model(words[:, side], (words[:, side] > 0).long()) for side in (0, 1))
        return nn.functional.mse_loss((left * right).sum(dim=1), alike)

    training.fit(model, loss, data, epochs=4, batch=128, rate=1e-2)
    names = ["input_ids", "attention_mask"]
    training.export_torchscript(
        model,
        (data[0][:2, 0], (data[0][:2, 0] > 0).long()),
        folder / "model.onnx",
        inputs=names,
        outputs=["sentence_embedding"],
        axes={name: {0: "batch"} for name in (*names, "sentence_embedding")},
    )
    calibration, test = world.made(rng, 150), world.made(rng, 2000)
    np.savez_compressed(folder / "calib.npz", allow_pickle=False, **_feeds(calibration[0].reshape(-1, LONGEST)))
    np.savez_compressed(folder / "test.npz", words=test[0], alike=test[1].astype(np.float16))


def _feeds(words: Array) -> dict[str, Array]:
    return {"input_ids": words.astype(np.int64), "attention_mask": (words > 0).astype(np.int64)}


def units(run: Run, test: dict[str, Array]) -> Array:
    """(pairs, 2): how alike the sentences are, and the cosine of their vectors."""
    left, right = (run(_feeds(test["words"][:, side]))["sentence_embedding"] for side in (0, 1))
    return np.stack([test["alike"].astype(np.float32), (left * right).sum(axis=1)], axis=1)


def score(units: Array) -> float:
    """Spearman's rank correlation, times 100."""
    return figures.spearman(units[:, 0], units[:, 1])
