"""The verdict on an assignment is that on the model which it makes, whether that model is made or not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context
from onnxcomp.graph.weights.roles import with_arrays
from onnxcomp.model import Model
from onnxcomp.pipeline.apply import apply_choice
from onnxcomp.pipeline.weight_search.assembly import build
from onnxcomp.pipeline.weight_search.assignment import measured
from onnxcomp.pipeline.weight_search.candidates import Assignment, Table, WeightOption
from onnxcomp.pipeline.weight_search.site_options import add_sites
from onnxcomp.registry import get_pass
from onnxcomp.verify import Verifier
from tests.pipeline.weight_search.fits import put_in
from tests.verify.chains import CHAIN, model_of
from tests.verify.models import CPU, opened

RNG = np.random.default_rng(0)
TEXT = CHAIN.replace("[N,8]", "[N,48]").replace("[N,5]", "[N,48]")
WEIGHTS = {name: (RNG.standard_normal((48, 48)) / 7).astype(np.float32) for name in "uwv"}
PLAIN = WeightOption(None, 1000, 0.0)
VALUES = WeightOption(0, 500, 0.01)


@pytest.fixture
def data(tmp_path: Any) -> CalibrationData:
    return opened(model_of(TEXT, WEIGHTS), tmp_path, x=RNG.standard_normal((40, 48)).astype(np.float32))


@pytest.mark.parametrize(
    ("chosen", "made"), [({"v": "values"}, 0), ({"v": "values", "w": "as it is"}, 0), ({}, 0),
                         ({"u": "rank"}, 1), ({"u": "rank", "v": "values"}, 1)],
)  # fmt: skip
def test_a_model_is_made_of_what_changes_the_graph_and_once(
    data: CalibrationData, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], made: int
) -> None:
    model = model_of(TEXT, WEIGHTS)
    rounded = {name: np.round(8 * each) / np.float32(8) for name, each in WEIGHTS.items()}
    table = Table({})
    put_in(table, 0, with_arrays(model, rounded))
    add_sites(table, model, [get_pass("factorize-linear")()], Context(), first=1)  # type: ignore[list-item]
    options = {"values": VALUES, "as it is": PLAIN, "rank": table.options["u"][-1]}
    assignment: Assignment = {name: options[each] for name, each in chosen.items()}
    verifier = Verifier(model, data, target=CPU)
    expected = verifier.check(build(model, table, assignment))
    seen: list[Model] = []
    fresh = dataclasses.replace(table, last_rewritten={})

    def counted(source: Model, *given: Any) -> Any:
        seen.append(source)
        return apply_choice(source, *given)

    monkeypatch.setattr("onnxcomp.pipeline.weight_search.assembly.apply_choice", counted)
    trials = verifier.trials(model)
    for _ in range(2):
        found = measured(trials, fresh, assignment)
        assert found.divergence == pytest.approx(expected.divergence, rel=1e-4)
    assert len(seen) == made
    assert bool(chosen) is bool(np.any(found.divergence))
