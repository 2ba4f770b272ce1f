"""onnxcomp.pipeline.weight_search.ways: the first way, unless another is better for sure on samples held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, parameter
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model
from onnxcomp.pipeline.weight_search.ways import LEAST_HELD_OUT, better_way
from onnxcomp.verify import Verifier
from tests.verify.models import CPU, WEIGHT, X, classifier, opened

seen: list[int] = []
amounts: list[float] = []


@dataclass(frozen=True, kw_only=True)
class Turning(Pass):
    """Move the weight, by another amount in each way."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    way: int = parameter(0, low=0, high=9, help="which")

    def ways(self) -> Sequence[Pass]:
        return [replace(self, way=each) for each in range(len(amounts))]

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        seen.append(0 if context.calibration is None else context.calibration.sample_count)
        for weight in weights(graph):
            noise = np.random.default_rng(self.way).standard_normal(weight.shape)
            weight.set((WEIGHT + amounts[self.way] * noise).astype(np.float32))
            outcome.change(weight.name, "turned")
        return outcome


@pytest.fixture(scope="module")
def model() -> Model:
    return classifier()


@pytest.fixture
def data(model: Model, tmp_path: Path) -> CalibrationData:
    return opened(model, tmp_path, x=X)


def chosen(model: Model, data: CalibrationData | None, *by: float) -> int:
    seen[:], amounts[:] = [], by
    tuner = None if data is None else Verifier(model, data, target=CPU)
    found = better_way(Turning(), model, Context(calibration=data), tuner)
    assert isinstance(found, Turning)
    return found.way


def test_a_way_that_is_far_nearer_is_taken(model: Model, data: CalibrationData) -> None:
    assert chosen(model, data, 0.3, 0.1) == 1
    assert chosen(model, data, 0.3, 0.1, 0.03) == 2
    assert chosen(model, data, 0.3, 0.03, 0.1) == 1


def test_the_first_stays_where_it_is_as_good(model: Model, data: CalibrationData) -> None:
    assert chosen(model, data, 0.1, 0.3) == 0
    assert chosen(model, data, 0.0, 0.0) == 0


def test_ways_are_fitted_without_what_is_held_out(model: Model, data: CalibrationData) -> None:
    chosen(model, data, 0.3, 0.1)
    assert seen == [len(X) * 4 // 5] * 2


def test_nothing_is_tried_where_nothing_can_be_told(model: Model, data: CalibrationData) -> None:
    assert chosen(model, None, 0.3, 0.1) == 0 and not seen
    assert chosen(model, data.first(LEAST_HELD_OUT), 0.3, 0.1) == 0 and not seen
    assert chosen(model, data, 0.3) == 0 and not seen


def test_nothing_is_tried_when_time_is_up(model: Model, data: CalibrationData) -> None:
    seen[:], amounts[:] = [], (0.3, 0.1)
    tuner = Verifier(model, data, target=CPU)
    assert better_way(Turning(), model, Context(calibration=data, deadline=0.0), tuner) == Turning(way=0)
    assert not seen
