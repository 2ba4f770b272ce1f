"""Every preset on drawn models, with data and without: the result saves, runs, keeps its promises and replays."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.graph.storage.expand import expand
from onnxcomp.model import load
from onnxcomp.pipeline import optimize, replay
from onnxcomp.recipe import preset_names
from onnxcomp.testing.applying import calibration_of
from onnxcomp.testing.comparing import differences, rounding_of
from tests.graphs import draw_models, feeds_for
from tests.graphs.running import run

MODELS = 66  # one for each block to start with
TIMED_RUNS = 50  # of a model of microseconds: which of them wins does not matter here
# Presets that search strengths take seconds a model. A preset gets one model in so many, and more in the slow job.
QUICK, WHOLE = {True: 13, False: 4}, {True: 7, False: 1}
SEARCHING = ("default", "small")


@cache
def drawn() -> list[onnx.ModelProto]:
    return draw_models(MODELS, seed=77)


def every(step: int, start: int = 0) -> Iterator[tuple[str, onnx.ModelProto, dict[str, np.ndarray]]]:
    for index, model in list(enumerate(drawn()))[start::step]:
        yield f"model {index}", model, feeds_for(model, index)


def assert_fine(path: Path, model: onnx.ModelProto, feeds: dict[str, np.ndarray], where: str, *, exact: bool) -> None:
    """The file loads, gives outputs of the same names, types and shapes, and with `exact` the same values."""
    expected, got = run(model, feeds), run(path.read_bytes(), feeds)
    assert list(got) == list(expected), where
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), f"{where}: {name}"
    if exact:
        assert not differences(expected, got, rtol=rounding_of(model)), where


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("steps", [QUICK, pytest.param(WHOLE, marks=pytest.mark.slow)], ids=["quick", "whole"])
def test_preset_without_data_gives_a_model_that_runs_and_replays(
    preset: str, steps: dict[bool, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.runtime.measure.MOST_RUNS", TIMED_RUNS)
    for where, model, feeds in every(steps[preset in SEARCHING]):
        result = optimize(model, recipe=preset, measure=False)
        path = tmp_path / f"{where}.onnx"
        result.save(path)
        assert_fine(path, model, feeds, where, exact=preset == "lossless")
        assert load(path).size_bytes <= len(model.SerializeToString()) + 64, where
        again = replay(model, result.receipt)
        assert again.model.to_bytes() == result.model.to_bytes(), f"{where}: replayed to other bytes"


@pytest.mark.parametrize("preset", ["small", "fast"])
def test_preset_with_data_gives_a_model_that_runs(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.runtime.measure.MOST_RUNS", TIMED_RUNS)
    for where, model, feeds in every(11, 3 if preset == "small" else 4):
        data: CalibrationData = calibration_of(model, feeds)
        path = tmp_path / f"{where}.onnx"
        optimize(model, recipe=preset, calibration=data, measure=False).save(path)
        assert_fine(path, model, feeds, where, exact=False)


def test_expanding_the_result_changes_nothing() -> None:
    for where, model, feeds in every(13, 1):
        packed = optimize(model, recipe="small", measure=False).model
        outputs = [run(each.to_bytes(), feeds) for each in (packed, expand(packed))]
        assert not differences(*outputs, rtol=2e-5), where


def test_optimizing_the_result_again_loses_nothing() -> None:
    for where, model, feeds in every(13, 2):
        once = optimize(model, recipe="default", measure=False).model
        twice = optimize(once, recipe="lossless", measure=False).model
        assert not differences(run(once.to_bytes(), feeds), run(twice.to_bytes(), feeds), rtol=2e-5), where
        assert twice.size_bytes <= once.size_bytes, where
