"""A tagger with attention of its own making and a mask that is 1 where words are: share of right tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds import _words

KIND = "tagger"
EXPORTER = "torch-dynamo"
WIDTH, HEADS = 40, 4


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    language = _words.Language(rng)
    words, tags, lengths = language.made(rng, 8000)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.feed = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

        def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            count, length, _ = x.shape
            parts = self.qkv(self.first(x)).reshape(count, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            scores = parts[0] @ parts[1].transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + hidden
            mixed = (scores.softmax(dim=-1) @ parts[2]).transpose(1, 2).reshape(count, length, WIDTH)
            x = x + self.out(mixed)
            return x + self.feed(self.second(x))

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(_words.WORDS, WIDTH), nn.Embedding(_words.LONGEST, WIDTH)
            self.blocks = nn.ModuleList([Block(), Block()])
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, _words.TAGS)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            x = self.words(input_ids) + self.places(torch.arange(_words.LONGEST))
            hidden = (1 - attention_mask[:, None, None, :].float()) * -1e4
            for block in self.blocks:
                x = block(x, hidden)
            return self.head(self.norm(x))

    model = Tagger()
    mask = (np.arange(_words.LONGEST) < lengths[:, None]).astype(np.int64)
    data = training.tensors(words, mask, tags)

    def loss(words: torch.Tensor, mask: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        chosen = mask[:, 1:] > 0
        return nn.functional.cross_entropy(model(words, mask)[:, 1:][chosen], tags[:, 1:][chosen])

    training.fit(model, loss, data, epochs=9, rate=4e-3)
    batch = torch.export.Dim("batch")
    training.export_dynamo(
        model,
        (data[0][:2], data[1][:2]),
        folder / "model.onnx",
        inputs=["input_ids", "attention_mask"],
        outputs=["logits"],
        shapes=({0: batch}, {0: batch}),
    )
    calibration, test = language.made(rng, 256), language.made(rng, 1500)
    np.savez_compressed(folder / "calib.npz", allow_pickle=False, **_feeds(calibration[0], calibration[2]))
    np.savez_compressed(folder / "test.npz", words=test[0], tags=test[1], lengths=test[2].astype(np.uint8))


def _feeds(words: Array, lengths: Array) -> dict[str, Array]:
    mask = np.arange(_words.LONGEST) < lengths[:, None]
    return {"input_ids": words.astype(np.int64), "attention_mask": mask.astype(np.int64)}


def units(run: Run, test: dict[str, Array]) -> Array:
    """(sentences, 2): right tags and tags."""
    logits = run(_feeds(test["words"], test["lengths"]))["logits"]
    return _words.right_of(logits, test["tags"], test["lengths"])


def score(units: Array) -> float:
    """Share of right tags in percent."""
    return 100 * float(units[:, 0].sum() / units[:, 1].sum())
