"""Samples to train on: their order, their batches, and how many of them are held at once."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.data.groups import Group, natural_order
from onnxcomp.calibration.data.sample_axes import Cut
from onnxcomp.runtime import Session
from onnxcomp.training.samples.stream import TrainingStream, held_out

MODEL = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y) { y = Identity(x) }'
).SerializeToString()


def folder_of(path: Path, sizes: list[int]) -> CalibrationData:
    """Files of samples (number of the file, place in it)."""
    for number, size in enumerate(sizes):
        values = np.stack([np.full(size, number), np.arange(size)], axis=1).astype(np.float32)
        np.savez(path / f"part{number}.npz", x=values)
    session = Session(MODEL)
    return CalibrationData.open(path, session.inputs, run=session.run)


def fed(stream: TrainingStream, steps: int) -> list[list[tuple[float, ...]]]:
    """What each step is fed."""
    return [
        [tuple(row) for chunk in stream.batch(step) for row in chunk.batch.feeds["x"].tolist()] for step in range(steps)
    ]


def test_an_epoch_has_every_sample_once_mixed_across_files(tmp_path: Path) -> None:
    stream = TrainingStream(folder_of(tmp_path, [30, 30, 30]), 16, seed=1)
    batches = fed(stream, stream.batches_in_epoch)
    everything = [(float(number), float(place)) for number in range(3) for place in range(30)]
    assert sorted(row for batch in batches for row in batch) == everything
    assert all(len({row[0] for row in batch}) > 1 for batch in batches)
    assert [len(each) for each in batches] == [16, 16, 16, 16, 16, 10]


def test_the_seed_fixes_the_order_and_epochs_differ(tmp_path: Path) -> None:
    data = folder_of(tmp_path, [40, 40])
    first, again, other = (fed(TrainingStream(data, 8, seed=seed), 20) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert first[:10] != first[10:]


def test_any_step_can_be_had_without_those_before_it(tmp_path: Path) -> None:
    data = folder_of(tmp_path, [25, 25])
    assert fed(TrainingStream(data, 8, seed=3), 20)[17] == [
        tuple(row) for chunk in TrainingStream(data, 8, seed=3).batch(17) for row in chunk.batch.feeds["x"].tolist()
    ]


def test_rows_say_where_samples_come_from(tmp_path: Path) -> None:
    stream = TrainingStream(folder_of(tmp_path, [9, 9]), 6, seed=0)
    for chunk in stream.batch(1):
        np.testing.assert_array_equal(chunk.batch.feeds["x"], chunk.rows.astype(np.float32))


def test_samples_run_in_pieces_where_a_step_s_do_not_fit(tmp_path: Path) -> None:
    stream = TrainingStream(folder_of(tmp_path, [40]), 16, seed=0, most=6)
    assert [chunk.batch.count for chunk in stream.batch(0)] == [6, 6, 4]


class Counting:
    """Loads groups and counts how many of them are held at once, as their arrays are let go."""

    def __init__(self, size: int) -> None:
        self.size, self.loads = size, 0

    def load(self, number: int) -> Mapping[str, Any]:
        self.loads += 1
        return {"x": np.full((self.size, 2), number, np.float32)}


def many_groups(loading: Counting, count: int) -> CalibrationData:
    groups = tuple(
        Group(f"part {n}", functools.partial(loading.load, n), Cut({"x": 0}, loading.size)) for n in range(count)
    )
    inputs = Session(MODEL).inputs
    return CalibrationData(source="test", inputs=tuple(inputs), groups=groups, order=natural_order(groups))


def test_no_more_is_held_than_the_room_and_each_file_is_read_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.training.samples.stream.LOOKED_AT", 0)  # as for a folder of many files
    loading = Counting(50)
    stream = TrainingStream(many_groups(loading, 40), 32, seed=0, room_bytes=4 * 50 * 2 * 4)
    seen: set[float] = set()
    for step in range(stream.batches_in_epoch):
        chunks = stream.batch(step)
        seen |= {row[0] for chunk in chunks for row in chunk.batch.feeds["x"].tolist()}
        assert sum(each["x"].nbytes for each in stream._held.values()) <= stream.room_bytes
    assert len(seen) == 40
    assert loading.loads <= 40 + 2 * 10  # windows of four: a batch may lie across two of them


def test_a_mapped_array_is_read_in_blocks_that_fit_in_the_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("onnxcomp.training.samples.stream.BLOCK_BYTES", 10 * 8)
    values = np.stack([np.zeros(300), np.arange(300)], axis=1).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    group = Group("x", lambda: {"x": np.load(tmp_path / "x.npy", mmap_mode="r")}, Cut({"x": 0}, 300))
    inputs = tuple(Session(MODEL).inputs)
    data = CalibrationData(source="test", inputs=inputs, groups=(group,), order=natural_order([group]))
    stream = TrainingStream(data, 25, seed=0, room_bytes=6 * 10 * 8)
    batches = fed(stream, stream.batches_in_epoch)
    assert sorted(row for batch in batches for row in batch) == [(0.0, float(place)) for place in range(300)]
    assert sum(each["x"].nbytes for each in stream._held.values()) <= stream.room_bytes
    assert all(type(each["x"]) is np.ndarray for each in stream._held.values())
    spans = [max(row[1] for row in batch) - min(row[1] for row in batch) for batch in batches]
    assert min(spans) > 60  # blocks of one window come from everywhere
    assert batches != fed(TrainingStream(data, 25, seed=1, room_bytes=480), 12)


def test_arrays_of_other_shapes_are_run_apart(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, L] x) => (float[N, L] y) { y = Identity(x) }'
    )
    np.savez(tmp_path / "a.npz", x=np.zeros((10, 3), np.float32))
    np.savez(tmp_path / "b.npz", x=np.zeros((10, 5), np.float32))
    session = Session(proto.SerializeToString())
    stream = TrainingStream(CalibrationData.open(tmp_path, session.inputs, run=session.run), 20, seed=0)
    assert sorted(chunk.batch.feeds["x"].shape for chunk in stream.batch(0)) == [(10, 3), (10, 5)]


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[4, 2] x) => (float[4, 2] y) { y = Identity(x) }'
    )
    for number in range(6):
        np.savez(tmp_path / f"{number}.npz", x=np.full((8, 2), number, np.float32))
    session = Session(proto.SerializeToString())
    stream = TrainingStream(CalibrationData.open(tmp_path, session.inputs, run=session.run), 16, seed=0)
    for step in range(3):
        assert [chunk.batch.feeds["x"].shape for chunk in stream.batch(step)] == [(4, 2)] * 4


@pytest.mark.parametrize("count", [40, 400])
def test_samples_held_back_are_not_trained_on(tmp_path: Path, count: int) -> None:
    data = folder_of(tmp_path, [count])
    trained, held = held_out(data, seed=0)
    rows = [{tuple(row) for row in each.order.tolist()} for each in (trained, held)]
    assert not rows[0] & rows[1] and len(rows[0] | rows[1]) == count
    assert len(rows[1]) >= min(32, count // 2)
    np.testing.assert_array_equal(held_out(data, seed=0)[1].order, held.order)
