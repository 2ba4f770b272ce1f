"""Series of values: what they give back, how much of them is in memory, and that files go with them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from onnxcomp.calibration.statistics.series import Room, Series
from onnxcomp.tensors import Scratch


def drawn(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return (100 * np.random.default_rng(len(shape)).standard_normal(shape)).astype(dtype)


def files(scratch: Scratch) -> list[Path]:
    return sorted(scratch.folder.iterdir())


@pytest.mark.parametrize("most_bytes", [0, 50_000, 2**30])
def test_gives_back_what_it_was_given(most_bytes: int) -> None:
    values = [
        drawn(40, 300), drawn(70, 301, dtype=np.int64), drawn(2, 3), np.float32(3.5).reshape(()), drawn(0, 7),
        drawn(50, 100, dtype=ml_dtypes.bfloat16), np.array(["a", "longer"], object), [drawn(30, 100), drawn(1)], None,
        drawn(60, 200).T, drawn(90, 90) > 0,
    ]  # fmt: skip
    series = Series(Room(most_bytes, Scratch()))
    for value in values:
        series.append(value)
    assert len(series) == len(values)
    for index, value in enumerate(values):
        found = series[index]
        if isinstance(value, np.ndarray):
            assert found.dtype == value.dtype and found.shape == value.shape
            assert np.array_equal(found, value)
        else:
            assert found is value


def test_no_more_is_in_memory_than_there_is_room_for() -> None:
    room = Room(100_000, Scratch())
    several = [Series(room) for _ in range(3)]
    for batch in range(6):
        for each in several:
            each.append(drawn(20, 500) + batch)
            assert room.used_bytes <= 100_000
    assert room.used_bytes == 80_000
    assert sum(path.stat().st_size for path in files(room.scratch)) == 16 * 40_000
    assert all(np.array_equal(each[batch], drawn(20, 500) + batch) for each in several for batch in range(6))


def test_memory_and_file_go_with_the_series() -> None:
    room = Room(50_000, Scratch())
    first, second = Series(room), Series(room)
    for _ in range(3):
        first.append(drawn(20, 500))
    second.append(drawn(20, 500))
    assert room.used_bytes == 40_000 and len(files(room.scratch)) == 2
    held = first[2]
    del first
    assert room.used_bytes == 0 and len(files(room.scratch)) == 1
    assert np.array_equal(held, drawn(20, 500))  # what was taken from it stays
    second.append(drawn(20, 500))
    assert room.used_bytes == 40_000


def test_values_can_be_added_after_others_were_read() -> None:
    series = Series(Room(0, Scratch()))
    for batch in range(4):
        series.append(drawn(20, 500) + batch)
        assert all(np.array_equal(series[each], drawn(20, 500) + each) for each in range(batch + 1))
