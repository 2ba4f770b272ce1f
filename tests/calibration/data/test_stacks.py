"""Models without an axis for samples: what is fed whole, and arrays that stack such feeds."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.errors import CalibrationError
from onnxcomp.runtime import Session

RNG = np.random.default_rng(0)
RECURRENT = """<ir_version: 8, opset_import: ["": 17]>
g (float[frames, bands] input, float[4] state) => (float[frames, one, 4] y, float[one, one, 4] last) {
  direction = Constant<value_ints = [1]>()
  middle = Constant<value_ints = [1]>()
  ends = Constant<value_ints = [0, 1]>()
  x = Unsqueeze(input, middle)
  h = Unsqueeze(state, ends)
  all, last = GRU<hidden_size = 4>(x, w, r, , , h)
  y = Squeeze(all, direction)
}"""


def recurrent() -> Session:
    model = onnx.parser.parse_model(RECURRENT)
    for name, shape in (("w", (1, 12, 6)), ("r", (1, 12, 4))):
        values = RNG.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return Session(model.SerializeToString())


def stack(count: int = 5) -> dict[str, np.ndarray]:
    shapes = {"input": (count, 9, 6), "state": (count, 4)}
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def opened(path: Path, **arrays: np.ndarray) -> CalibrationData:
    session = recurrent()
    np.savez(path / "d.npz", **arrays)
    return CalibrationData.open(path / "d.npz", session.inputs, run=session.run, not_samples={"input": frozenset({0})})


def test_one_axis_more_than_declared_counts_whole_feeds(tmp_path: Path) -> None:
    given = stack()
    data = opened(tmp_path, **given)
    found = list(data.batches())
    assert data.sample_count == data.distinct_count == len(found) == 5
    for at, feeds in enumerate(found):
        np.testing.assert_array_equal(feeds["input"], given["input"][at])
        np.testing.assert_array_equal(feeds["state"], given["state"][at])


def test_what_has_the_declared_rank_goes_along_with_each_feed_of_a_stack(tmp_path: Path) -> None:
    given = stack()
    found = list(opened(tmp_path, input=given["input"], state=given["state"][0]).batches())
    assert len(found) == 5
    assert all((feeds["state"] == given["state"][0]).all() for feeds in found)


def test_each_feed_of_a_stack_has_its_label(tmp_path: Path) -> None:
    data = opened(tmp_path, **stack(), labels=np.arange(5))
    assert data.has_labels
    assert [batch.labels.tolist() for batch in data.labelled_batches() if batch.labels is not None] == [
        [0], [1], [2], [3], [4],
    ]  # fmt: skip
    with pytest.raises(CalibrationError, match="4 labels for 5 samples"):
        opened(tmp_path, **stack(), labels=np.arange(4))


@pytest.mark.parametrize(
    "shapes",
    [{"input": (5, 9, 6), "state": (4, 4)}, {"input": (5, 9, 6), "state": (5, 3)}, {"input": (2, 5, 9, 6)}],
)
def test_arrays_that_are_no_stack_are_refused(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    arrays = {name: np.zeros(shape, np.float32) for name, shape in ({"state": (4,)} | shapes).items()}
    with pytest.raises(CalibrationError, match="has shape"):
        opened(tmp_path, **arrays)


def test_what_only_runs_whole_along_an_axis_is_not_cut_there(tmp_path: Path) -> None:
    """All bands together run, since a batch may hold as many, and one of them alone does not."""
    data = opened(tmp_path, input=stack()["input"][0], state=np.zeros(4, np.float32))
    assert [feeds["input"].shape for feeds in data.batches()] == [(9, 6)]
    assert "each is fed whole" in " ".join(data.notes)
