"""What a run says of all its trainings: the samples, the engine, the time, and where they are kept on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from onnxcomp.calibration import CalibrationData
from onnxcomp.training.engines import AUTO


@dataclass(frozen=True)
class TrainingSetup:
    """data: samples to train on, None for the calibration part. engine: by name. limit_s: of one training, infinite
    where its epochs say how long it takes. checkpoints: the folder that trainings are kept in, None for nowhere."""

    data: CalibrationData | None = None
    engine: str = AUTO
    limit_s: float = math.inf
    checkpoints: Path | None = None
