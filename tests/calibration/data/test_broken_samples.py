"""Samples with NaN or infinity in them: left out where the model makes NaN of them, and nowhere else."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.data.broken_samples import without_broken
from onnxcomp.calibration.data.sequences import Sequences
from onnxcomp.errors import CalibrationError
from onnxcomp.runtime import ValueSpec

BROKEN = {3: np.nan, 8: np.inf, 9: -np.inf, 40: np.nan}
KEPT = [at for at in range(50) if at not in BROKEN]


def specs(**shapes: tuple[Any, ...]) -> list[ValueSpec]:
    return [ValueSpec(name, "tensor(float)", shape) for name, shape in shapes.items()]


def rows() -> np.ndarray:
    """Fifty samples of three numbers, the first of which is where they stand."""
    found = np.ones((50, 3), np.float32)
    found[:, 0] = np.arange(50)
    for at, value in BROKEN.items():
        found[at, 1] = value
    return found


def difference(feeds: Mapping[str, Any]) -> dict[str, Any]:
    """NaN of NaN and of both infinities."""
    return {"y": np.where(np.isfinite(feeds["x"]), 0.0, np.nan)}


def imputed(feeds: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": np.nan_to_num(feeds["x"]), "label": np.zeros(len(feeds["x"]), np.int64)}


def fed(data: CalibrationData) -> list[int]:
    return sorted(int(value) for feeds in data.batches() for value in feeds["x"][:, 0])


def test_samples_that_make_outputs_nan_are_left_out_and_counted() -> None:
    data = without_broken(CalibrationData.open({"x": rows()}, specs(x=("N", 3))), difference)
    assert fed(data) == KEPT
    assert "4 of 50 samples hold NaN or infinity" in data.notes[-1] and "left out" in data.notes[-1]
    assert sorted(fed(data.split()[0]) + fed(data.split()[1])) == KEPT


def test_a_model_of_fixed_batch_one_is_no_exception() -> None:
    assert fed(without_broken(CalibrationData.open({"x": rows()}, specs(x=(1, 3))), difference)) == KEPT


def test_samples_lie_along_any_axis() -> None:
    held = {"t": np.zeros((50, 2), np.float32), "x": np.ascontiguousarray(rows().T)}
    data = CalibrationData.open(held, specs(t=("N", 2), x=(3, "N")))
    found = without_broken(data, lambda feeds: {"y": difference(feeds)["y"].T})
    assert found.sample_count == len(KEPT)
    assert sorted(value for feeds in found.batches() for value in feeds["x"][0]) == KEPT


def test_a_model_that_reads_nan_keeps_all_samples() -> None:
    data = CalibrationData.open({"x": rows()}, specs(x=("N", 3)))
    assert without_broken(data, imputed) is data


def test_nan_of_the_models_own_is_no_fault_of_the_samples() -> None:
    data = CalibrationData.open({"x": np.ones((9, 3), np.float32)}, specs(x=("N", 3)))
    assert without_broken(data, lambda feeds: {"y": feeds["x"] * np.nan}) is data


def test_where_all_samples_are_broken_there_is_nothing_to_go_by() -> None:
    data = CalibrationData.open({"x": np.full((5, 3), np.nan, np.float32)}, specs(x=("N", 3)))
    with pytest.raises(CalibrationError, match="5 of 5 samples hold NaN or infinity"):
        without_broken(data, difference)


def test_fixed_batches_go_as_a_whole() -> None:
    data = without_broken(CalibrationData.open({"x": rows()}, specs(x=(10, 3))), difference)
    assert fed(data) == [*range(10, 40)]
    assert "20 of 50 samples lie in batches with NaN or infinity" in data.notes[-1]


def test_sequences_stay_whole_and_it_is_said() -> None:
    data = CalibrationData.open(Sequences({"x": rows().reshape(5, 10, 3)}, 1), specs(x=("N", 3)))
    found = without_broken(data, difference)
    assert np.array_equal(found.order, data.order) and "4 of 50" in found.notes[-1]
