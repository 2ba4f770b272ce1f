"""The calibration and the verification part of the data: no sample, and no content, is in both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.runtime import ValueSpec


def specs(**shapes: tuple[Any, ...]) -> list[ValueSpec]:
    return [ValueSpec(name, "tensor(float)", shape) for name, shape in shapes.items()]


def test_split_is_disjoint_whole_and_fixed_by_the_seed(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.arange(200, dtype=np.float32)[:, None])
    data = CalibrationData.open(tmp_path / "c.npz", specs(x=("N", 1)))

    def values(part: CalibrationData) -> list[float]:
        return [float(v) for feeds in part.batches() for v in feeds["x"][:, 0]]

    calibration, verification = data.split(seed=3, fraction=0.25, minimum=60)
    assert len(values(verification)) == 60
    assert sorted(values(calibration) + values(verification)) == list(range(200))
    assert values(verification) != sorted(values(verification))
    assert values(data.split(seed=3, fraction=0.25, minimum=60)[1]) == values(verification)
    assert values(data.split(seed=4, fraction=0.25, minimum=60)[1]) != values(verification)
    assert len(values(data.split(minimum=1000)[1])) == 100


def test_split_takes_from_every_group_and_keeps_exact_batches(tmp_path: Path) -> None:
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", 100 * i + np.arange(100, dtype=np.float32).reshape(50, 2))
    calibration, verification = CalibrationData.open(tmp_path, specs(x=(4, 2))).split()
    for part in (calibration, verification):
        assert {float(feeds["x"][0, 0] // 100) for feeds in part.batches()} == {0, 1, 2, 3}
        assert {len(feeds["x"]) for feeds in part.batches()} == {4}
    assert "2 last samples do not fill a batch of 4, dropped" in calibration.notes[0]
    assert len(list(calibration.batches(limit=1))) == 1


def test_a_single_sample_serves_both_parts_and_says_so(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 2), np.float32))
    calibration, verification = CalibrationData.open(tmp_path / "x.npy", specs(x=("N", 2))).split()
    assert calibration.sample_count == verification.sample_count == 1
    assert "verified on the calibration samples" in verification.notes[0]


def rows_of(part: CalibrationData, name: str = "x") -> list[tuple[float, ...]]:
    return [tuple(row) for feeds in part.batches() for row in feeds[name].tolist()]


@pytest.mark.parametrize("declared", [("N", 2), (1, 2)])
def test_equal_samples_stay_on_one_side(tmp_path: Path, declared: tuple[Any, ...]) -> None:
    kinds = np.arange(20, dtype=np.float32).reshape(10, 2)
    for i in range(2):  # equal samples in two files, too
        np.save(tmp_path / f"{i}.npy", np.repeat(kinds, 6, axis=0))
    data = CalibrationData.open(tmp_path, specs(x=declared))
    assert data.distinct_count == 10
    calibration, verification = data.split(seed=1)
    assert calibration.distinct_count == verification.distinct_count == 5
    assert set(rows_of(calibration)).isdisjoint(rows_of(verification))
    assert len(rows_of(calibration)) == len(rows_of(verification)) == 60
    assert rows_of(data.split(seed=1)[1]) == rows_of(verification)
    assert set(rows_of(data.split(seed=2)[1])) != set(rows_of(verification))


def test_one_content_repeated_often_does_not_crowd_out_the_others(tmp_path: Path) -> None:
    x = np.concatenate([np.zeros(500), np.arange(1, 41)]).astype(np.float32)[:, None]
    np.save(tmp_path / "x.npy", x)
    parts = CalibrationData.open(tmp_path / "x.npy", specs(x=("N", 1))).split()
    assert sorted(part.distinct_count for part in parts) == [20, 21]


def test_equal_samples_of_fixed_batches_stay_on_one_side(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.repeat(np.arange(30, dtype=np.float32), 4)[:, None])
    calibration, verification = CalibrationData.open(tmp_path / "x.npy", specs(x=(8, 1))).split()
    assert set(rows_of(calibration)).isdisjoint(rows_of(verification))
    assert {len(feeds["x"]) for part in (calibration, verification) for feeds in part.batches()} == {8}


def test_samples_of_one_content_serve_both_parts_and_say_so(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((64, 2), np.float32))
    data = CalibrationData.open(tmp_path / "x.npy", specs(x=("N", 2)))
    calibration, verification = data.split()
    assert data.distinct_count == 1
    assert calibration.sample_count == verification.sample_count == 64
    assert "all 64 samples are equal" in verification.notes[0]


def test_distinct_samples_differ_in_some_cut_input(tmp_path: Path) -> None:
    x = np.float32([[0], [0], [1], [0]])
    state = np.float32([[[5], [6], [5], [5]]])  # cut along axis 1
    np.savez(tmp_path / "c.npz", x=x, state=state, rate=np.float32(3), labels=np.arange(4))
    data = CalibrationData.open(tmp_path / "c.npz", specs(x=("batch", 1), state=(1, "batch", 1), rate=()))
    assert data.distinct_count == 3  # the first and the last are equal, whatever their labels
