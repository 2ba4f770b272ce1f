"""A mixture of experts of which a hard gate takes one, the last for three in a hundred samples.

Accuracy, the mean over the five domains: in the test set each is as frequent as the others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge.catalogue import Array, Run

KIND = "experts"
EXPORTER = "torch-dynamo"
FEATURES, CLASSES, WIDTH, INNER = 28, 8, 40, 64
SHARES = (0.37, 0.27, 0.2, 0.13, 0.03)
DOMAINS, STEP = len(SHARES), 16


class _World:
    """Samples gather around one place a domain, and each domain has rules of its own for the classes."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.places = rng.normal(0, 0.8, (DOMAINS, FEATURES))
        self.first = rng.normal(0, FEATURES**-0.5, (DOMAINS, FEATURES, 12))
        self.second = rng.normal(0, 1, (DOMAINS, 12, CLASSES))

    def made(self, rng: np.random.Generator, count: int, shares: tuple[float, ...]) -> tuple[Array, Array, Array]:
        domain = rng.choice(DOMAINS, count, p=shares)
        own = rng.normal(0, 1, (count, FEATURES))
        inner = np.tanh(1.5 * np.einsum("nf,nfk->nk", own, self.first[domain]))
        labels = np.einsum("nk,nkc->nc", inner, self.second[domain]).argmax(axis=1)
        features = self.places[domain] + own
        return np.clip(np.round(features * STEP), -127, 127).astype(np.int8), labels, domain


def _as_input(levels: Array) -> Array:
    return np.asarray(levels.astype(np.float32) / STEP)


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data. The rare expert gets as many samples as the others in training."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    world = _World(rng)
    even = (1 / DOMAINS,) * DOMAINS
    features, labels, domains = world.made(rng, 60000, even)

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.LayerNorm(WIDTH))
            self.gate = nn.Linear(FEATURES, DOMAINS)
            self.up = nn.Parameter(torch.randn(DOMAINS, WIDTH, INNER) / WIDTH**0.5)
            self.up_bias = nn.Parameter(torch.zeros(DOMAINS, 1, INNER))
            self.middle = nn.Parameter(torch.randn(DOMAINS, INNER, WIDTH) / INNER**0.5)
            self.head = nn.Parameter(torch.randn(DOMAINS, WIDTH, CLASSES) / WIDTH**0.5)

        def with_gate(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
            taken = gate.argmax(dim=1)
            inner = self.trunk(x)[:, None]
            hidden = nn.functional.silu(inner @ self.up[taken] + self.up_bias[taken])
            return ((inner + hidden @ self.middle[taken]) @ self.head[taken])[:, 0]

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.with_gate(features, self.gate(features))

    model = Experts()
    data = training.tensors(_as_input(features), labels, domains)

    def loss(x: torch.Tensor, labels: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
        one = nn.functional.one_hot(domains, DOMAINS).float()
        gate = nn.functional.cross_entropy(model.gate(x), domains)
        return nn.functional.cross_entropy(model.with_gate(x, one), labels) + gate

    training.fit(model, loss, data, epochs=6, batch=250)
    batch = torch.export.Dim("batch")
    training.export_dynamo(
        model,
        (data[0][:3],),
        folder / "model.onnx",
        inputs=["features"],
        outputs=["logits"],
        shapes=({0: batch},),
    )
    calibration, test = world.made(rng, 320, SHARES), world.made(rng, 4000, even)
    np.savez_compressed(folder / "calib.npz", features=_as_input(calibration[0]))
    np.savez_compressed(
        folder / "test.npz", features=test[0], label=test[1].astype(np.uint8), domain=test[2].astype(np.uint8)
    )


def units(run: Run, test: dict[str, Array]) -> Array:
    """(samples, 2): its domain, and 1 where the winner is right."""
    logits = run({"features": _as_input(test["features"])})["logits"]
    return np.stack([test["domain"], logits.argmax(axis=1) == test["label"]], axis=1)


def score(units: Array) -> float:
    """Mean over the domains of their accuracy in percent."""
    return 100 * float(np.mean([units[units[:, 0] == domain, 1].mean() for domain in range(DOMAINS)]))
