"""observe against numpy: what inner tensors hold, in room that does not grow with the samples."""

from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.statistics import watch as module
from onnxcomp.calibration.statistics.observe import observe
from onnxcomp.errors import TargetError
from onnxcomp.model import Model, load
from onnxcomp.runtime import Feeds, Session, Value

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,4] x) => (float[N,4] y) {
      a = Neg(x) b = Log(x) c = Cast<to=11>(x) s = Shape(x) d = Exp(a) y = Relu(d) }"""


@pytest.fixture
def model() -> Model:
    return load(parser.parse_model(TEXT))


@pytest.fixture
def data(model: Model, tmp_path: Path) -> CalibrationData:
    np.savez(tmp_path / "calib.npz", x=np.arange(-40, 360, dtype=np.float32).reshape(100, 4))
    return CalibrationData.open(tmp_path / "calib.npz", Session(model.to_bytes()).inputs)


def test_ranges_types_and_ranks_of_inner_tensors_and_inputs(model: Model, data: CalibrationData) -> None:
    seen = observe(model, ["x", "a", "y"], data)
    assert seen["x"].histogram.covering(1.0) == (-40, 359)
    assert seen["a"].histogram.covering(1.0) == (-359, 40)
    assert seen["a"].histogram.count == 400
    assert [each.fault for each in seen.values()] == [None, None, None]
    assert seen["y"].rank == 2


def test_tensors_that_have_no_range_say_why(model: Model, data: CalibrationData) -> None:
    seen = observe(model, ["b", "c", "s"], data)
    assert "not finite" in (seen["b"].fault or "")
    assert "float64" in (seen["c"].fault or "")
    assert "int64" in (seen["s"].fault or "")


def test_only_the_first_samples_are_used(model: Model, data: CalibrationData) -> None:
    assert observe(model, ["x"], data, limit=10)["x"].histogram.covering(1.0) == (-40, -1)


def noting(fetched: list[list[str]]) -> type[Session]:
    """Sessions that note what each run fetches."""

    class Watched(Session):
        def run(self, feeds: Feeds, names: list[str] | None = None) -> dict[str, Value]:  # type: ignore[override]
            fetched.append(list(names or []))
            return super().run(feeds, names)

    return Watched


def test_tensors_that_need_much_room_are_fetched_in_turns(
    model: Model, data: CalibrationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[list[str]] = []
    monkeypatch.setattr(module, "ROOM_BYTES", 32)  # two tensors of 1 x 4 float32: a batch of one
    monkeypatch.setattr(module, "MOST_BYTES", 16)
    seen = observe(model, ["a", "d"], data, open_session=noting(fetched))
    assert fetched[:4] == [["a", "d"], ["a"], ["d"], ["a"]]  # the first run only tells the sizes
    assert len(fetched) == 1 + 2 * 100
    assert seen["d"].histogram.count == 400


def test_beside_a_large_model_one_run_fetches_as_much_as_the_model_takes(
    model: Model, data: CalibrationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[list[str]] = []
    for name, value in (("ROOM_BYTES", 32), ("MOST_BYTES", 16), ("LARGE_BYTES", 1)):
        monkeypatch.setattr(module, name, value)
    seen = observe(model, ["a", "d"], data, open_session=noting(fetched))
    assert fetched == [["a", "d"]] * (1 + 100) and seen["d"].histogram.count == 400


def test_batches_are_as_large_as_their_values_have_room(
    model: Model, data: CalibrationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    class Watched(Session):
        def run(self, feeds: Feeds, names: list[str] | None = None) -> dict[str, Value]:  # type: ignore[override]
            counts.append(len(feeds["x"]))
            return super().run(feeds, names)

    monkeypatch.setattr(module, "ROOM_BYTES", 330)  # a sample takes 32 bytes
    assert observe(model, ["a", "d"], data, open_session=Watched)["a"].histogram.count == 400
    assert counts == [1] + [10] * 10


def test_the_ends_alone_need_no_histogram_and_are_taken_from_one(model: Model, data: CalibrationData) -> None:
    ends = observe(model, ["a", "x"], data, ends_only=True)
    assert ends["a"].values.covering(1.0) == (-359, 40)
    assert ends["x"].values.mean_ends() == (np.mean([-40, 88, 216, 344]), np.mean([87, 215, 343, 359]))
    with pytest.raises(TypeError, match="ends"):
        _ = ends["a"].histogram
    assert observe(model, ["a"], data)["a"].histogram.count == 400

    def refuse(source: object) -> Session:
        raise AssertionError("opened again")

    assert observe(model, ["a"], data, ends_only=True, open_session=refuse)["a"].values.high == 40


def test_files_beside_the_model_are_left_as_they_are(
    model: Model, data: CalibrationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxcomp import model as model_module

    monkeypatch.setattr(model_module, "INLINE_LIMIT_BYTES", 0)  # opened from a file
    before = model.proto.SerializeToString()
    assert observe(model, ["a"], data)["a"].histogram.count == 400
    assert model.proto.SerializeToString() == before


def test_what_was_seen_of_a_model_is_not_measured_again(model: Model, data: CalibrationData) -> None:
    observe(model, ["a", "d"], data)

    def refuse(source: object) -> Session:
        raise AssertionError("opened again")

    assert observe(model, ["d"], data, open_session=refuse)["d"].histogram.count == 400


def test_a_model_that_does_not_open_with_all_optimizations_opens_without(model: Model, data: CalibrationData) -> None:
    def fail(source: object) -> Session:
        raise TargetError("Failed to find node output")

    assert observe(model, ["a"], data, open_session=fail)["a"].histogram.count == 400
