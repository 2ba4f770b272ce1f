"""How many samples tell that exact passes left a large model's outputs as they were.

A lossy step is held to a budget, and what it costs is an estimate over the samples. An exact one is held to nothing but
rounding: one sample that shows more is enough to take it back. A fault that shows on a share p of all samples hides
from n of them, drawn at random, with probability (1 - p)^n.
"""

from __future__ import annotations

import math

from onnxcomp.calibration import CalibrationData
from onnxcomp.model import Model
from onnxcomp.pipeline.opening import LARGE_BYTES
from onnxcomp.verify.limits import COUNTED

HIDDEN_SHARE = 0.2  # of the samples, on which a fault may show and still hide
HIDES = 0.05  # the probability that it does
ENOUGH = math.ceil(math.log(HIDES) / math.log1p(-HIDDEN_SHARE))  # 14


def enough_for_exact(model: Model, checking: CalibrationData, metric: str) -> CalibrationData:
    """The samples by which a recipe of exact steps alone is judged: of a large model, each run of which takes long, as
    many as find a fault. All of them where samples are counted or scored, and where they are steps of sequences."""
    is_told_by_each = checking.has_labels or metric in COUNTED or ":" in metric or checking.are_sequences
    if model.size_bytes < LARGE_BYTES or checking.is_random or is_told_by_each:
        return checking
    return checking.first(ENOUGH)
