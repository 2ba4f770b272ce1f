"""A concentration of some 1e-6 read from a spectrum (N, 1, 96) by convolutions: every output is close to zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run

KIND = "regression"
EXPORTER = "torch-dynamo"
UNIT, LINES = 1e-6, 96


def samples(seed: int, count: int) -> tuple[Array, Array]:
    """Spectra (count, 96) int8 hundredths, and the concentrations (count,) float32 of the substance at line 40."""
    rng = np.random.default_rng(seed)
    at = np.arange(LINES)
    amount = rng.gamma(2.0, 0.5, count)
    others = rng.gamma(2.0, 0.5, (count, 4))
    shift = rng.normal(0, 1.5, (count, 1))

    def peak(centre: float, width: float) -> Array:
        return np.exp(-0.5 * ((at - centre - shift) / width) ** 2)

    spectra = 0.35 * amount[:, None] * (peak(40, 3) + 0.5 * peak(71, 4))
    for index, (centre, width) in enumerate(((30, 5), (48, 4), (60, 9), (80, 4))):
        spectra += 0.3 * others[:, index : index + 1] * peak(centre, width)
    spectra += rng.normal(0, 0.15, (count, 1)) * (at / LINES - 0.5) + rng.normal(0, 0.15, (count, LINES))
    return np.clip(np.round(spectra * 50), -128, 127).astype(np.int8), (amount * UNIT).astype(np.float32)


def network() -> Any:
    """The torch module, untrained."""
    from torch import nn

    def block(inner: int, outer: int) -> list[nn.Module]:
        return [nn.Conv1d(inner, outer, 5, 2, 2, bias=False), nn.BatchNorm1d(outer), nn.ReLU()]

    layers = [*block(1, 16), *block(16, 32), *block(32, 48), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(48 * 12, 40), nn.ReLU(), nn.Linear(40, 1))


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch

    from benchmarks.judge import training

    training.start(seed)
    spectra, amounts = samples(seed, 12000)
    inputs, wanted = torch.tensor(spectra[:, None].astype(np.float32) / 100), torch.tensor(amounts[:, None] / UNIT)
    net = network()

    def loss(spectrum: Any, amount: Any) -> Any:
        return ((net(spectrum) - amount) ** 2).mean()

    training.fit(net, loss, (inputs, wanted), epochs=10, rate=4e-3)
    net[-1].weight.data *= UNIT  # trained in millionths, put out in ones
    net[-1].bias.data *= UNIT
    batch = {0: torch.export.Dim("batch")}
    training.export_dynamo(
        net, (inputs[:2],), folder / "model.onnx", inputs=["spectrum"], outputs=["concentration"], shapes=(batch,)
    )
    spectra, amounts = samples(seed + 1, 2000)
    calib = samples(seed + 2, 300)[0][:, None].astype(np.float32) / 100
    np.savez_compressed(folder / "calib.npz", spectrum=calib)
    np.savez_compressed(folder / "test.npz", spectra=spectra, concentrations=amounts)


def units(run: Run, test: dict[str, Array]) -> Array:
    """Per sample: the true and the found concentration."""
    found = run({"spectrum": test["spectra"][:, None].astype(np.float32) / 100})["concentration"]
    return np.stack([test["concentrations"], found[:, 0]], 1).astype(np.float64)


def score(units: Array) -> float:
    """R2 x 100."""
    return figures.r2(units[:, 0], units[:, 1])
