"""Data that a program holds are read as the same data from a file are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.calibration import CalibrationData, Sequences
from onnxcomp.errors import CalibrationError
from onnxcomp.runtime import ValueSpec

VALUES = np.arange(40 * 3, dtype=np.float32).reshape(40, 3)
LABELS = np.arange(40) % 5
ONE = (ValueSpec("x", "tensor(float)", ("N", 3)),)
TWO = (*ONE, ValueSpec("k", "tensor(int64)", ()))


class Lazy:
    """What numpy can read, as tensors of other libraries are."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return VALUES if dtype is None else VALUES.astype(dtype)


def feeds() -> Iterator[dict[str, Any]]:
    for start in range(0, 40, 8):
        yield {"x": VALUES[start : start + 8]}


def read(source: Any, inputs: tuple[ValueSpec, ...] = ONE) -> np.ndarray:
    """All samples of x in order."""
    data = CalibrationData.open(source, inputs)
    return np.concatenate([batch["x"] for batch in data.batches()])


@pytest.mark.parametrize(
    "source",
    [
        {"x": VALUES}, VALUES, Lazy(), {"x": VALUES.tolist()}, feeds(), list(feeds()), feeds, lambda: {"x": VALUES},
        lambda: VALUES, [VALUES[:16], VALUES[16:]], ({"x": each[None]} for each in VALUES),
    ],
    ids=["dict", "array", "lazy", "lists", "generator", "list", "function", "gives a dict", "gives an array", "arrays",
         "one by one"],
)  # fmt: skip
def test_every_form_gives_the_samples_of_the_file(source: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=VALUES)
    expected = read(tmp_path / "x.npz")
    if isinstance(source, dict) and isinstance(source["x"], list):
        source = {"x": np.asarray(source["x"], np.float32)}
    np.testing.assert_array_equal(read(source), expected)


def test_labels_lie_beside_the_arrays() -> None:
    data = CalibrationData.open({"x": VALUES, "labels": LABELS}, ONE)
    assert data.has_labels
    np.testing.assert_array_equal(np.concatenate([each.labels for each in data.labelled_batches()]), LABELS)


def test_a_scalar_goes_along_with_every_batch() -> None:
    data = CalibrationData.open({"x": VALUES, "k": 7}, TWO)
    assert [int(each["k"]) for each in data.batches()] == [7, 7]


def test_arrays_can_be_split_and_read_again() -> None:
    first, second = CalibrationData.open(feeds(), ONE).split(seed=0)
    twice = [np.concatenate([batch["x"] for batch in first.batches()]) for _ in range(2)]
    np.testing.assert_array_equal(*twice)
    rest = np.concatenate([batch["x"] for batch in second.batches()])
    np.testing.assert_array_equal(np.sort(np.concatenate([twice[0], rest])[:, 0]), VALUES[:, 0])


def test_sequences_may_be_arrays() -> None:
    steps = VALUES.reshape(4, 10, 3)
    data = CalibrationData.open(Sequences({"x": steps}, 1), ONE)
    assert data.sample_count == 40 and data.source == "arrays from Python"
    np.testing.assert_array_equal(data.groups[0].sequences, np.repeat(np.arange(4), 10))


@pytest.mark.parametrize(
    ("source", "inputs", "words"),
    [
        (3, ONE, "must be a path"),
        (b"x.npz", ONE, "must be a path"),
        (VALUES, TWO, "the model wants: x, k. Give a dict"),
        ({"y": VALUES}, ONE, "arrays from Python lacks x and has y, which the model does not"),
        ([(VALUES, LABELS)], ONE, "feed 0 must be a dict of arrays by input name, got tuple"),
        ([{"x": VALUES}, 3], ONE, "feed 1 must be a dict of arrays by input name, got int"),
        ([], ONE, "feeds from Python gave no feeds"),
        (lambda: 1 / 0, ONE, "arrays from Python raised ZeroDivisionError"),
    ],
)
def test_what_holds_no_inputs_is_refused_in_one_line(source: Any, inputs: Any, words: str) -> None:
    with pytest.raises(CalibrationError, match=words) as caught:
        CalibrationData.open(source, inputs)
    assert "\n" not in str(caught.value)
