"""A speech detector that takes one frame and a state, calibrated on first frames with state zero.

AUC over all frames of sequences that run on the model's own state.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds import _frames

KIND = "stream"
EXPORTER = "torch-dynamo"
STATE, LENGTH = 56, 40


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch import nn

    from benchmarks.judge import training

    rng = training.start(seed)
    frames, spoken = _frames.made(rng, 3000, LENGTH, loud=1.1)

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.front = nn.Sequential(nn.Linear(_frames.BANDS, 32), nn.ReLU())
            self.cells = nn.ModuleList([nn.GRUCell(32, STATE), nn.GRUCell(STATE, STATE)])
            self.head = nn.Linear(STATE, 1)

        def forward(self, frame: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            first = self.cells[0](self.front(frame), state[0])
            second = self.cells[1](first, state[1])
            return self.head(second).sigmoid(), torch.stack([first, second])

    model = Detector()
    data = training.tensors(_frames.as_input(frames), spoken)

    def loss(frames: torch.Tensor, spoken: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(2, len(frames), STATE)
        found = []
        for place in range(LENGTH):
            speech, state = model(frames[:, place], state)
            found.append(speech)
        return nn.functional.binary_cross_entropy(torch.cat(found, dim=1), (spoken > 0).float())

    training.fit(model, loss, data, epochs=6, rate=6e-3)
    batch = torch.export.Dim("batch")
    training.export_dynamo(
        model,
        (data[0][:3, 0], torch.zeros(2, 3, STATE)),
        folder / "model.onnx",
        inputs=["frame", "state"],
        outputs=["speech", "new_state"],
        shapes=({0: batch}, {1: batch}),
    )
    first = _frames.made(rng, 256, LENGTH, loud=1.1)[0][:, 0]
    np.savez_compressed(
        folder / "calib.npz", frame=_frames.as_input(first), state=np.zeros((2, len(first), STATE), np.float32)
    )
    test = _frames.made(rng, 400, LENGTH, loud=1.1)
    np.savez_compressed(folder / "test.npz", frames=test[0], spoken=test[1])


def units(run: Run, test: dict[str, Array]) -> Array:
    """(sequences, 2 LENGTH): what is spoken and how sure the model is, frame by frame on its own state."""
    frames = _frames.as_input(test["frames"])
    state = np.zeros((2, len(frames), STATE), np.float32)
    found = []
    for place in range(frames.shape[1]):
        outputs = run({"frame": np.ascontiguousarray(frames[:, place]), "state": state})
        state = outputs["new_state"]
        found.append(outputs["speech"])
    return np.concatenate([test["spoken"] > 0, *found], axis=1)


def score(units: Array) -> float:
    """AUC over frames, times 100."""
    truth, found = np.split(units, 2, axis=1)
    return figures.auc(truth, found)
