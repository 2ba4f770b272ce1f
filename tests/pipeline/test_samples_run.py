"""How often a model is run, on how many samples: counted where ONNX Runtime is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser

from onnxcomp.model import load
from onnxcomp.pipeline import opening, optimize
from onnxcomp.pipeline.opening import open_data
from onnxcomp.pipeline.safety import exact_samples
from onnxcomp.runtime import Session
from onnxcomp.target import Target

SAMPLES = 64
TEXT = '''<ir_version: 8, opset_import: ["" : 17]> g (float[N,12] x) => (float[N,5] y) {
    h = MatMul(x, w) i = Identity(h) y = Relu(i) }'''


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The samples of every run from now on."""
    found: list[int] = []
    run = Session.run

    def counting(self: Session, feeds: Any, *rest: Any, **options: Any) -> Any:
        found.append(len(feeds["x"]) if "x" in feeds else 0)
        return run(self, feeds, *rest, **options)

    monkeypatch.setattr(Session, "run", counting)
    return found


@pytest.fixture
def calib(tmp_path: Path) -> str:
    values = np.random.default_rng(0).standard_normal((SAMPLES, 12)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=values)
    return str(tmp_path / "c.npz")


def net() -> ModelProto:
    proto = parser.parse_model(TEXT)
    values = np.random.default_rng(1).standard_normal((12, 5)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return proto


def test_where_all_steps_are_exact_only_what_verifies_is_run(runs: list[int], calib: str) -> None:
    result = optimize(net(), recipe="lossless", calibration=calib, measure=False)
    checked = result.receipt.data["verification_samples"]
    assert result.receipt.applied and checked < SAMPLES
    first_batch = runs[0]
    assert sum(runs) == first_batch + 2 * checked, "once to read the data, then the original and the result"


@pytest.mark.parametrize(("size", "is_frugal"), [(0, True), (10**9, False)])
def test_random_inputs_are_drawn_on_a_frugal_session_of_a_large_model(
    monkeypatch: pytest.MonkeyPatch, size: int, is_frugal: bool
) -> None:
    opened: list[bool] = []
    start = Session.__init__

    def noting(self: Session, *rest: Any, frugal: bool = False, **options: Any) -> None:
        opened.append(frugal)
        start(self, *rest, frugal=frugal, **options)

    monkeypatch.setattr(Session, "__init__", noting)
    monkeypatch.setattr(opening, "FRUGAL_BYTES", size)
    assert open_data(load(net()), None, Target.of("cpu"), 0).is_random
    assert opened == [is_frugal]


def test_a_large_model_runs_on_few_samples_at_once(
    runs: list[int], calib: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_data(load(net()), calib, Target.of("cpu"), 0)
    monkeypatch.setattr(opening, "LARGE_BYTES", 0)
    few = open_data(load(net()), calib, Target.of("cpu"), 0)
    assert runs == [whole.batch_size, opening.LARGE_TRIED] and few.batch_size == opening.LARGE_BATCH < whole.batch_size
    for one, other in zip(np.concatenate([each["x"] for each in whole.batches()]),
                          np.concatenate([each["x"] for each in few.batches()]), strict=True):  # fmt: skip
        np.testing.assert_array_equal(one, other)


def test_exact_steps_on_a_large_model_are_verified_on_as_many_samples_as_find_a_fault(
    runs: list[int], calib: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_samples, "LARGE_BYTES", 0)
    result = optimize(net(), recipe="lossless", calibration=calib, measure=False)
    checked = result.receipt.data["verification_samples"]
    hidden = np.random.default_rng(0).random((100_000, checked)) >= exact_samples.HIDDEN_SHARE
    assert 0.6 * exact_samples.HIDES < hidden.all(axis=1).mean() < exact_samples.HIDES, "a fault on a share of samples"
    assert result.receipt.applied and sum(runs) == runs[0] + 2 * checked


@pytest.mark.parametrize("options", [{"recipe": "default"}, {"recipe": "lossless", "metric": "top1"}])
def test_what_loses_or_counts_is_verified_on_all_samples_of_a_large_model(
    options: dict[str, str], calib: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_samples, "LARGE_BYTES", 0)
    result = optimize(net(), calibration=calib, measure=False, **options)  # type: ignore[arg-type]
    assert result.receipt.data["verification_samples"] == SAMPLES // 2


def test_a_session_makes_a_folder_only_for_data_that_has_to_lie_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(net())
    before = list(model.scratch.folder.iterdir())
    with model.opened_on(lambda source: list(model.scratch.folder.iterdir())) as seen:
        assert seen == before
