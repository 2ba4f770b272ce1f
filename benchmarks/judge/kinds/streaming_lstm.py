"""A speech detector with an LSTM that takes four frames at a time, calibrated on whole sequences.

A calibration file holds one sequence: its chunks in order, each with the state that the model had there.
AUC over all frames of sequences that run on the model's own state.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds import _frames

KIND = "stream"
EXPORTER = "torch-torchscript"
STATE, LENGTH, CHUNK = 64, 48, 4


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    frames, spoken = _frames.made(rng, 4000, LENGTH, loud=1.0)

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.front = nn.Conv1d(_frames.BANDS, 40, 1)
            self.memory = nn.LSTM(40, STATE, batch_first=True)
            self.head = nn.Sequential(nn.Linear(STATE, 24), nn.ReLU(), nn.Linear(24, 1))

        def forward(
            self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            inner = self.front(x.transpose(1, 2)).relu().transpose(1, 2)
            inner, (h, c) = self.memory(inner, (h, c))
            return self.head(inner).squeeze(-1).sigmoid(), h, c

    model = Detector()
    data = training.tensors(_frames.as_input(frames), spoken)

    def loss(frames: torch.Tensor, spoken: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros(1, len(frames), STATE)
        return nn.functional.binary_cross_entropy(model(frames, zero, zero)[0], (spoken > 0).float())

    training.fit(model, loss, data, epochs=10, rate=6e-3)
    zero = torch.zeros(1, 2, STATE)
    names, outputs = ["x", "h", "c"], ["speech", "hn", "cn"]
    training.export_torchscript(
        model,
        (data[0][:2, :CHUNK], zero, zero),
        folder / "model.onnx",
        inputs=names,
        outputs=outputs,
        axes={name: {0 if name in ("x", "speech") else 1: "batch"} for name in names + outputs},
    )
    _write_sequences(folder, _frames.as_input(_frames.made(rng, 24, LENGTH, loud=1.0)[0]))
    test = _frames.made(rng, 400, LENGTH, loud=1.0)
    np.savez_compressed(folder / "test.npz", frames=test[0], spoken=test[1])


def _write_sequences(folder: Path, frames: Array) -> None:
    """Every sequence to a file of its own, its chunks as samples."""
    from benchmarks.judge.scoring import runner

    run = runner(folder / "model.onnx")
    (folder / "calib").mkdir(exist_ok=True)
    for number, sequence in enumerate(frames):
        states = []
        for _, state in _run_through(run, sequence[None]):
            states.append({name: np.round(value * 128) / 128 for name, value in state.items()})
        h, c = (np.concatenate([state[name] for state in states], axis=1) for name in ("h", "c"))
        chunks = sequence.reshape(-1, CHUNK, _frames.BANDS)
        np.savez_compressed(folder / "calib" / f"{number}.npz", x=chunks, h=h, c=c)


def _run_through(run: Run, frames: Array) -> list[tuple[Array, dict[str, Array]]]:
    """What the model says of every chunk, and the state that it had before."""
    state = {name: np.zeros((1, len(frames), STATE), np.float32) for name in ("h", "c")}
    found = []
    for start in range(0, frames.shape[1], CHUNK):
        outputs = run({"x": np.ascontiguousarray(frames[:, start : start + CHUNK]), **state})
        found.append((outputs["speech"], state))
        state = {"h": outputs["hn"], "c": outputs["cn"]}
    return found


def units(run: Run, test: dict[str, Array]) -> Array:
    """(sequences, 2 LENGTH): what is spoken and how sure the model is, on its own state."""
    found = [speech for speech, _ in _run_through(run, _frames.as_input(test["frames"]))]
    return np.concatenate([test["spoken"] > 0, *found], axis=1)


def score(units: Array) -> float:
    """AUC over frames, times 100."""
    truth, found = np.split(units, 2, axis=1)
    return figures.auc(truth, found)
