"""onnxcomp.verify.activations: what is worth keeping, and that nothing is kept where it would change the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.statistics.series import Room
from onnxcomp.graph.slices import Slices
from onnxcomp.runtime import Session
from onnxcomp.tensors import Scratch
from onnxcomp.verify.activations import Activations, keep_activations
from tests.verify.chains import CHAIN, WEIGHTS, model_of
from tests.verify.models import X, opened

SAMPLES = len(X)
CHAINED = {"r": np.maximum(X @ WEIGHTS["u"], 0)}
CHAINED["b"] = np.maximum(CHAINED["r"] @ WEIGHTS["w"], 0)


def session(proto: ModelProto) -> Session:
    return Session(proto.SerializeToString())


def kept(data: CalibrationData, text: str = CHAIN, *, open_session: Any = session, **options: Any) -> Activations:
    memory = Room(options.pop("memory", 2**20), Scratch())
    return keep_activations(Slices(model_of(text).proto), ["u", "w", "v"], data, open_session, memory, **options)


@pytest.fixture
def data(tmp_path: Path) -> CalibrationData:
    return opened(model_of(CHAIN), tmp_path, x=X)


@pytest.mark.parametrize("memory", [2**20, 0])
def test_keeps_what_enters_all_that_comes_after_a_weight(
    data: CalibrationData, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.calibration.statistics.series.SMALL_BYTES", 0)
    found = kept(data, memory=memory)
    assert found.known == {"r", "b"}
    for name, expected in CHAINED.items():
        series = found.series[name]
        rows = np.concatenate([np.asarray(series[batch]) for batch in range(len(series))])
        np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)


def test_the_samples_sizes_are_stated_where_they_agree(data: CalibrationData) -> None:
    """120 samples are three batches of 32 and one of 24."""
    dims = kept(data).infos()["b"].type.tensor_type.shape.dim
    assert [each.HasField("dim_value") for each in dims] == [False, True] and dims[1].dim_value == 6


@pytest.mark.parametrize(
    ("room", "names"), [(0, set()), (SAMPLES * 24 - 1, set()), (SAMPLES * 24, {"b"}), (SAMPLES * 56, {"r", "b"})]
)
def test_keeps_what_spares_most_for_its_bytes(data: CalibrationData, room: int, names: set[str]) -> None:
    assert kept(data, room=room).known == names


def test_gives_up_the_last_where_later_samples_are_larger(tmp_path: Path) -> None:
    """The first of two files has short sequences, which tell too little of the second."""
    text = CHAIN.replace("[N,8]", "[N,L,8]").replace("[N,5]", "[N,L,5]")
    for name, length in (("a", 1), ("b", 9)):
        np.savez(tmp_path / f"{name}.npz", x=np.ones((4, length, 8), np.float32))
    running = Session(model_of(text).to_bytes())
    samples = CalibrationData.open(tmp_path, running.inputs, run=running.run)
    whole = 4 * (1 + 9) * 4
    assert kept(samples, text, room=whole * 14).known == {"r", "b"}
    assert kept(samples, text, room=whole * 7).known == {"b"}
    assert kept(samples, text, room=whole * 2).known == set()


def test_keeps_nothing_where_handing_a_tensor_out_changes_the_outputs(data: CalibrationData) -> None:
    """As where ONNX Runtime fuses integer operators over it."""

    def rounding(proto: ModelProto) -> Any:
        plain = session(proto)

        class Rounding:
            def run(self, feeds: Any, names: Any = None) -> dict[str, np.ndarray]:
                found = plain.run(feeds, names)
                changed = {"y": found["y"] + np.float32(error)} if "y" in found and len(found) > 1 else {}
                return found | changed

        return Rounding()

    error = 1e-2
    assert kept(data, open_session=rounding).known == set()
    error = 1e-7
    assert kept(data, open_session=rounding).known == {"r", "b"}


def test_what_is_no_array_or_of_short_floats_is_not_kept(data: CalibrationData) -> None:
    text = CHAIN.replace("b = Relu(a)", "c = Cast<to = 10>(a) b = Cast<to = 1>(c)")
    assert kept(data, text.replace("b, v", "b, v0").replace("y =", "v0 = Identity(v) y =")).known == {"r", "b"}
    short = text.replace("y = MatMul(b, v)", "v1 = Cast<to = 10>(v) y1 = MatMul(c, v1) y = Cast<to = 1>(y1)")
    assert kept(data, short).known == {"r"}
    listed = CHAIN.replace("y = MatMul(b, v)", "l = SequenceConstruct(v, v) s = SequenceInsert(q, v) y = MatMul(b, v)")
    assert kept(data, listed.replace("l = SequenceConstruct(v, v)", "q = SequenceConstruct(b)")).known == {"r"}
