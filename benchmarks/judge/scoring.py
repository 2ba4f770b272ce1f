"""Scores of models, and how much of one a variant lost.

Both models answer the same test units, so the standard error is that of the difference: delete-a-group
jackknife, se^2 = (G - 1) / G * sum_g (loss without group g - mean of these)^2.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.judge import catalogue, figures
from benchmarks.judge.catalogue import Array, Kind, Run

GROUPS = 25


@dataclass(frozen=True)
class Loss:
    """Points lost and their standard error; ``score`` is the variant's own."""

    score: float
    loss: float
    se: float


def runner(model: Path | bytes) -> Run:
    """A function that runs the model on one thread; what is not finite comes out as a number."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs = [item.name for item in session.get_outputs()]

    def run(feeds: dict[str, Array]) -> dict[str, Array]:
        found = session.run(outputs, feeds)
        return {
            name: np.nan_to_num(value) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
            for name, value in zip(outputs, found, strict=True)
        }

    return run


def units_of(name: str, model: Path | bytes) -> Array:
    """(units, k) statistics of a model on the test data of its kind."""
    return np.asarray(catalogue.kind(name).units(runner(model), catalogue.test_data(name)), dtype=np.float32)


def without_each_group(score: Callable[[Array], float], units: Array) -> Array:
    """(GROUPS,) the score without each group; neighbours, which may be alike, fall into different ones."""
    group = np.arange(len(units)) % GROUPS
    return np.array([score(units[group != g]) for g in range(GROUPS)])


class Scorer:
    """Losses of variants of one model; the original's figures are computed once."""

    def __init__(self, name: str, folder: Path) -> None:
        """folder: where units are kept, by the content of what they were made from."""
        self.name = name
        self.kind: Kind = catalogue.kind(name)
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        test = (catalogue.MODELS / name / "test.npz").read_bytes()
        source = inspect.getsource(inspect.getmodule(self.kind.units)) + inspect.getsource(figures)  # type: ignore[arg-type]
        self._seed = hashlib.sha256(test + source.encode()).digest()
        self.original = self.units(catalogue.model_path(name).read_bytes())
        self.original_score = self.kind.score(self.original)
        self._original_parts = without_each_group(self.kind.score, self.original)

    def units(self, model: bytes) -> Array:
        """The model's units, from the cache where they are there."""
        path = self.folder / (hashlib.sha256(self._seed + model).hexdigest()[:32] + ".npy")
        if not path.is_file():
            np.save(path, units_of(self.name, model))
        return np.asarray(np.load(path))

    def loss(self, model: bytes) -> Loss:
        """What the model lost against the original."""
        units = self.units(model)
        parts = self._original_parts - without_each_group(self.kind.score, units)
        score = self.kind.score(units)
        se = np.sqrt((GROUPS - 1) / GROUPS * np.sum((parts - parts.mean()) ** 2))
        return Loss(float(score), float(self.original_score - score), float(se))
