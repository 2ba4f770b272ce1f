"""Luck in what was measured of a weight's options: how much of it is taken out."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.contract import Context
from onnxcomp.model import Model, load
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.weight_search.candidates import Table, WeightOption
from onnxcomp.pipeline.weight_search.sensitivity import measure_influence
from onnxcomp.verify import Verdict
from tests.pipeline.weight_search.fits import put_in

ERRORS = (0.0005, 0.001, 0.002, 0.004, 0.008)
OPTIONS = [WeightOption(at, 2000 - 300 * at, error) for at, error in enumerate(ERRORS)]
PLAIN = WeightOption(None, 4096, 0.0)
LUCKY = OPTIONS[3]


def product(size: float) -> Model:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,32] x) => (float[N,32] y) { y = MatMul(x, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.full((32, 32), size, np.float32), "w"))
    return load(proto)


class Judge:
    """Each option adds three times its error, the lucky one a tenth of that. unsure: half of an interval, relative."""

    limit = search_limit = 0.03
    metric = "divergence"
    samples = 100

    def __init__(self, unsure: float) -> None:
        self.unsure = unsure

    def trials(self, model: Model) -> Any:
        return SimpleNamespace(check=self.check, model=model, verifier=self)

    def check(self, values: Mapping[str, Any]) -> Verdict:
        found = 0.0
        if values:
            option = OPTIONS[round(float(np.asarray(next(iter(values.values()))).flat[0])) - 1]
            found = 3 * option.error * (0.1 if option is LUCKY else 1)
        ends = (found * (1 - self.unsure), found * (1 + self.unsure))
        return Verdict(divergence=found, interval=ends, limit=self.limit, samples=self.samples)


def predicted(unsure: float) -> dict[WeightOption, float]:
    table = Table({"w": [PLAIN, *OPTIONS]})
    for at in range(len(OPTIONS)):
        put_in(table, at, product(at + 1.0))
    judge: Any = Judge(unsure)
    mild = {"w": OPTIONS[0]}
    measure_influence(product(0.0), table, judge, Reach(judge), mild, Context(), tolerable=1.0)
    return {each: table.predicted("w", each) for each in OPTIONS}


def test_what_is_sure_stands() -> None:
    assert predicted(0.0)[LUCKY] == pytest.approx(0.3 * LUCKY.error)


def test_of_what_is_unsure_luck_is_taken_out() -> None:
    """All but the lucky one say three times the error: noise explains it, and most of it goes."""
    found = predicted(1.0)
    assert 1.5 * LUCKY.error < found[LUCKY] < 3 * LUCKY.error
    for option in OPTIONS:
        if option is not LUCKY:
            assert found[option] == pytest.approx(3 * option.error)
