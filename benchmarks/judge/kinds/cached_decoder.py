"""A decoder that makes one step and hands its keys and values on: next-token accuracy on its own cache.

A text opens with a mode and a name; each token follows from the mode and the last token, and after a marker
comes the name again. Calibration inputs are single steps with the cache that the model made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge.catalogue import Array, Run

KIND = "decoder"
EXPORTER = "torch-torchscript"
MODES, PLAIN, LENGTH = 4, 26, 28
MARKER, VOCABULARY = MODES + PLAIN, MODES + PLAIN + 1
WIDTH, HEADS, LAYERS = 48, 4, 2
CACHES = [f"past.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]


class _Grammar:
    def __init__(self, rng: np.random.Generator) -> None:
        self.follows = rng.integers(0, PLAIN, (MODES, PLAIN)) + MODES

    def made(self, rng: np.random.Generator, count: int) -> Array:
        """(count, LENGTH) uint8; one token in eight is anything, one in eight a marker."""
        tokens = np.zeros((count, LENGTH), np.uint8)
        mode = rng.integers(0, MODES, count)
        tokens[:, 0], tokens[:, 1] = mode, rng.integers(0, PLAIN, count) + MODES
        for place in range(2, LENGTH):
            last = tokens[:, place - 1]
            after = self.follows[mode, np.clip(last.astype(int) - MODES, 0, PLAIN - 1)]
            after = np.where(last == MARKER, tokens[:, 1], after)
            odd = rng.random(count)
            after = np.where((odd < 0.125) & (last != MARKER), MARKER, after)
            tokens[:, place] = np.where(odd > 0.875, rng.integers(0, PLAIN, count) + MODES, after)
        return tokens


def _block() -> Any:
    """One block: what goes in with the keys and values so far -> what comes out with all of them."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.feed = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, WIDTH))

        def forward(
            self, x: torch.Tensor, key: torch.Tensor, value: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            def heads(projected: torch.Tensor) -> torch.Tensor:
                return projected.reshape(x.shape[0], -1, HEADS, WIDTH // HEADS).transpose(1, 2)

            inner = self.first(x)
            key = torch.cat([key, heads(self.k(inner))], dim=2)
            value = torch.cat([value, heads(self.v(inner))], dim=2)
            scores = heads(self.q(inner)) @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
            if x.shape[1] > 1:
                scores = scores + torch.full((x.shape[1], x.shape[1]), -1e4).triu(1)
            mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(x.shape[0], -1, WIDTH)
            x = x + self.o(mixed)
            return x + self.feed(self.second(x)), key, value

    return Block()


def _decoder() -> Any:
    """Tokens and caches -> logits and longer caches."""
    import torch
    from torch import nn

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
            self.blocks = nn.ModuleList([_block() for _ in range(LAYERS)])
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

        def forward(self, input_ids: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
            seen = past[0].shape[2]
            x = self.tokens(input_ids) + self.places(torch.arange(seen, seen + input_ids.shape[1]))
            present = []
            for i, block in enumerate(self.blocks):
                x, key, value = block(x, past[2 * i], past[2 * i + 1])
                present += [key, value]
            return self.head(self.norm(x)), *present

    return Decoder()


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    grammar = _Grammar(rng)
    model = _decoder()
    (data,) = training.tensors(grammar.made(rng, 12000))

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        empty = torch.zeros(len(tokens), HEADS, 0, WIDTH // HEADS)
        logits = model(tokens[:, :-1], *[empty] * len(CACHES))[0]
        return nn.functional.cross_entropy(logits[:, 1:].flatten(0, 1), tokens[:, 2:].flatten())

    training.fit(model, loss, (data,), epochs=9, rate=4e-3)
    _export(model, data[:2, :1], folder)
    _write_steps(folder, grammar.made(rng, 200))
    np.savez_compressed(folder / "test.npz", tokens=grammar.made(rng, 800))


def _export(model: Any, tokens: Any, folder: Path) -> None:
    """Write one step of the model; tokens: (2, 1)."""
    import torch

    from benchmarks.judge import training

    present = [name.replace("past", "present") for name in CACHES]
    axes = {name: {0: "batch", 2: "past_length"} for name in CACHES}
    axes |= {name: {0: "batch", 2: "total_length"} for name in present}
    axes |= {"input_ids": {0: "batch"}, "logits": {0: "batch"}}
    cache = torch.zeros(2, HEADS, 3, WIDTH // HEADS)
    training.export_torchscript(
        model,
        (tokens, *[cache] * len(CACHES)),
        folder / "model.onnx",
        inputs=["input_ids", *CACHES],
        outputs=["logits", *present],
        axes=axes,
    )


def _write_steps(folder: Path, tokens: Array) -> None:
    """Ten sequences a file, all at one step, the first to the tenth, with the cache so far."""
    from benchmarks.judge.scoring import runner

    run = runner(folder / "model.onnx")
    (folder / "calib").mkdir(exist_ok=True)
    for number in range(20):
        own = tokens[10 * number : 10 * number + 10]
        cache = _empty(len(own))
        step = 1 + number // 2
        for place in range(step):
            _, cache = _stepped(run, own[:, place : place + 1], cache)
        short = {name: np.round(value * 32) / 32 for name, value in cache.items()}  # a third of the bytes
        last = own[:, step : step + 1].astype(np.int64)
        np.savez_compressed(folder / "calib" / f"{number}.npz", allow_pickle=False, input_ids=last, **short)


def _empty(count: int) -> dict[str, Array]:
    return {name: np.zeros((count, HEADS, 0, WIDTH // HEADS), np.float32) for name in CACHES}


def _stepped(run: Run, tokens: Array, cache: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    found = run({"input_ids": tokens.astype(np.int64), **cache})
    return found["logits"][:, -1], {name: found[name.replace("past", "present")] for name in CACHES}


def units(run: Run, test: dict[str, Array]) -> Array:
    """(texts, 1): share of the tokens foretold, each step on the model's own cache."""
    tokens = test["tokens"]
    cache = _empty(len(tokens))
    right = np.zeros(tokens.shape, bool)
    for place in range(LENGTH - 1):
        logits, cache = _stepped(run, tokens[:, place : place + 1], cache)
        right[:, place + 1] = logits.argmax(axis=1) == tokens[:, place + 1]
    return np.asarray(right[:, 2:].mean(axis=1, keepdims=True))


def score(units: Array) -> float:
    """Next-token accuracy in percent."""
    return 100 * float(units.mean())
