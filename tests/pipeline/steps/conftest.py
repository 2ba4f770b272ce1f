"""Samples for the chain of matrices, and a clock that passes can put forward."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.pipeline.chain import FEATURES

from .bending import BendWeights, Context, Graph, Outcome


@pytest.fixture
def calib(tmp_path: Path) -> str:
    path = tmp_path / "calib.npz"
    np.savez(path, x=np.random.default_rng(1).normal(size=(60, FEATURES)).astype(np.float32))
    return str(path)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[float]]:
    """Lets bending by a factor take an hour; gives the factors of all bendings, in order."""
    late = [0.0]
    monotonic = time.monotonic
    monkeypatch.setattr("onnxcomp.clock.time", SimpleNamespace(monotonic=lambda: monotonic() + late[0]))

    def at(factor: float) -> list[float]:
        bent: list[float] = []
        bend = BendWeights.apply

        def dawdling(self: BendWeights, graph: Graph, context: Context) -> Outcome:
            bent.append(self.by)
            late[0] += 3600 if self.by == factor else 0
            return bend(self, graph, context)

        monkeypatch.setattr(BendWeights, "apply", dawdling)
        return bent

    return at
