"""torch's own TransformerEncoder with a key padding mask, true where no word is: share of right tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds import _words

KIND = "tagger"
EXPORTER = "torch-torchscript"
WIDTH = 40


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    torch.backends.mha.set_fastpath_enabled(False)  # the fused one has no ONNX form
    language = _words.Language(rng)
    words, tags, lengths = language.made(rng, 8000)

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(_words.WORDS, WIDTH)
            self.places = nn.Parameter(0.1 * torch.randn(1, _words.LONGEST, WIDTH))
            layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(WIDTH, _words.TAGS)

        def forward(self, tokens: torch.Tensor, src_key_padding_mask: torch.Tensor) -> torch.Tensor:
            x = self.words(tokens) + self.places
            return self.head(self.encoder(x, src_key_padding_mask=src_key_padding_mask)).log_softmax(dim=-1)

    model = Tagger()
    padding = np.arange(_words.LONGEST) >= lengths[:, None]
    data = (*training.tensors(words, tags), torch.from_numpy(padding))

    def loss(words: torch.Tensor, tags: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        chosen = ~padding[:, 1:]
        return nn.functional.nll_loss(model(words, padding)[:, 1:][chosen], tags[:, 1:][chosen])

    training.fit(model, loss, data, epochs=9)
    names = ["tokens", "src_key_padding_mask"]
    training.export_torchscript(
        model,
        (data[0][:2], data[2][:2]),
        folder / "model.onnx",
        inputs=names,
        outputs=["log_probabilities"],
        axes={name: {0: "batch"} for name in (*names, "log_probabilities")},
    )
    calibration, test = language.made(rng, 256), language.made(rng, 1500)
    np.savez_compressed(folder / "calib.npz", allow_pickle=False, **_feeds(calibration[0], calibration[2]))
    np.savez_compressed(folder / "test.npz", words=test[0], tags=test[1], lengths=test[2].astype(np.uint8))


def _feeds(words: Array, lengths: Array) -> dict[str, Array]:
    padding = np.arange(_words.LONGEST) >= lengths[:, None]
    return {"tokens": words.astype(np.int64), "src_key_padding_mask": padding}


def units(run: Run, test: dict[str, Array]) -> Array:
    """(sentences, 2): right tags and tags."""
    found = run(_feeds(test["words"], test["lengths"]))["log_probabilities"]
    return _words.right_of(found, test["tags"], test["lengths"])


def score(units: Array) -> float:
    """Share of right tags in percent."""
    return 100 * float(units[:, 0].sum() / units[:, 1].sum())
