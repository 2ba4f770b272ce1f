"""What a user says of trainings, and the samples opened as the model wants them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcomp.budget import parse_time
from onnxcomp.calibration import CalibrationData
from onnxcomp.errors import CalibrationError, ParameterError
from onnxcomp.model import Model
from onnxcomp.pipeline.history.digests import data_digest
from onnxcomp.pipeline.opening import open_data
from onnxcomp.target import Target
from onnxcomp.training.engines import AUTO, CHOICES, refuse_missing
from onnxcomp.training.setup import TrainingSetup

DIGESTED_BYTES = 2**32  # of samples: of more, the receipt does not say what they are


@dataclass(frozen=True)
class TrainingOptions:
    """What there is to say of trainings.

    data: samples to train on, in the forms of calibration data; None for the calibration part. engine: torch, ort or
    auto. time: of each training, such as 10m; None for what its epochs take. checkpoints: a folder in which trainings
    are kept, so that they go on where they were.

    Raises ParameterError for an unknown engine or no time.
    """

    data: Any = None
    engine: str = AUTO
    time: str | None = None
    checkpoints: Path | None = None

    def __post_init__(self) -> None:
        if self.engine not in CHOICES:
            raise ParameterError(f"engine: must be one of {', '.join(CHOICES)}, got {self.engine!r}")
        if self.time is not None:
            parse_time(self.time)

    def opened(self, model: Model, target: Target, seed: int) -> TrainingSetup:
        """With the samples read; the files become inputs of the run. Raises ParameterError for torch where that is not
        installed, whether or not something of the run comes to be trained."""
        refuse_missing(self.engine)
        data = None if self.data is None else opened_samples(self.data, model, target, seed)
        limit_s = math.inf if self.time is None else parse_time(self.time)
        return TrainingSetup(data, self.engine, limit_s, self.checkpoints)


def opened_samples(source: Any, model: Model, target: Target, seed: int) -> CalibrationData:
    """Samples to train on. Raises CalibrationError for data that do not fit."""
    data = open_data(model, source, target, seed)
    model.inputs.update(data.files)
    return data


def described(setup: TrainingSetup | None) -> dict[str, Any]:
    """What the receipt says of it."""
    if setup is None:
        return {}
    told: dict[str, Any] = {"engine": setup.engine}
    if setup.data is not None:
        told |= {"source": setup.data.source, "samples": setup.data.sample_count, "sha256": samples_digest(setup.data)}
    return told


def samples_digest(data: CalibrationData) -> str | None:
    """By content; None for so many that reading them takes long."""
    first = data.groups[0].load()
    size = sum(getattr(each, "nbytes", 0) for each in first.values()) * len(data.groups)
    return data_digest(data) if size <= DIGESTED_BYTES else None


def refuse_other_samples(setup: TrainingSetup | None, known: dict[str, Any]) -> None:
    """Raise CalibrationError where these are not the samples that a receipt says."""
    wanted = known.get("sha256")
    if wanted is None:
        return
    if setup is None or setup.data is None:
        raise CalibrationError("replaying needs the training data. Give it with --train-data.")
    if samples_digest(setup.data) != wanted:
        raise CalibrationError(f"{setup.data.source}: the receipt was made with other training data.")
