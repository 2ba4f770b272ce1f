"""The judge, called as ``optimize`` calls it: the one place that knows its interface."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge import catalogue
from benchmarks.judge.catalogue import Array
from onnxcomp.calibration import CalibrationData
from onnxcomp.model import load
from onnxcomp.pipeline.opening import open_data
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.safety.unseen import with_unseen
from onnxcomp.target import Target
from onnxcomp.verify import DEFAULT_MAX_DIVERGENCE, Verifier

SEED = 0


def judge_of(name: str) -> Callable[[Path], dict[str, Any]]:
    """A function that says the verdict on a variant, by the verification part of the calibration data."""
    target = Target.of("cpu")
    original = load(catalogue.model_path(name))
    checking = _data(name).split(seed=SEED)[1]
    verifier = Verifier(original, checking, target=target, seed=SEED)
    reach = Reach(verifier.on(checking))

    def check(variant: Path) -> dict[str, Any]:
        started = time.monotonic()
        made = load(variant)
        verdict = with_unseen(verifier.check(made), original, made, reach)
        each = [asdict(output) for output in verdict.outputs]
        return verdict.describe() | {"each": each, "seconds": round(time.monotonic() - started, 4)}

    return check


def limit() -> float:
    """The default threshold."""
    return DEFAULT_MAX_DIVERGENCE


def calibration_batches(name: str) -> Callable[[int], Iterator[dict[str, Array]]]:
    """Feeds of so many calibration samples, as a quantizer sees them."""

    def batches(count: int) -> Iterator[dict[str, Array]]:
        for feeds in _data(name).split(seed=SEED)[0].batches(limit=count):
            yield {key: np.asarray(value) for key, value in feeds.items()}

    return batches


def _data(name: str) -> CalibrationData:
    model = load(catalogue.model_path(name))
    return open_data(model, str(catalogue.calibration_path(name)), Target.of("cpu"), SEED)
