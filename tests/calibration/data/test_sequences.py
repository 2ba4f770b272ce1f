"""onnxcomp.calibration.data.sequences: data whose samples are steps of sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.calibration import CalibrationData, Sequences
from onnxcomp.calibration.states.rollout import rolled_out
from onnxcomp.calibration.states.states import named_states
from onnxcomp.errors import CalibrationError
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session


def accumulator(x: str = "N, 1", h: str = "N, 1") -> Model:
    """hn = 0.5 h + x, y = 2 hn."""
    text = (
        f"g (float[{x}] x, float[{h}] h) => (float[{x}] y, float[{h}] hn)"
        " <float half = {0.5}, float two = {2.0}> { a = Mul(h, half) hn = Add(a, x) y = Mul(hn, two) }"
    )
    return load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}'))


def opened(model: Model, source: Any) -> CalibrationData:
    session = Session(model.to_bytes())
    states = {state.input for state in named_states(model, session)}
    data = CalibrationData.open(source, session.inputs, run=session.run, states=states)
    return rolled_out(model, session, data)


def column(data: CalibrationData, name: str) -> list[float]:
    return [float(each) for feeds in data.batches() for each in feeds[name].ravel()]


def states_after(x: np.ndarray, start: float = 0.0) -> list[float]:
    """What h is before each step of one sequence."""
    found, state = [], start
    for value in x:
        found.append(state)
        state = 0.5 * state + float(value)
    return found


def test_each_file_of_a_numbered_folder_is_a_sequence(tmp_path: Path) -> None:
    for i, count in enumerate((3, 30, 7)):
        np.savez(tmp_path / f"{i}.npz", x=10 * i + np.arange(count, dtype=np.float32)[:, None])
    data = opened(accumulator(), tmp_path)
    expected = [each for i, n in enumerate((3, 30, 7)) for each in states_after(10 * i + np.arange(n))]
    np.testing.assert_allclose(column(data, "h"), expected, rtol=1e-6)
    assert data.are_sequences and data.sample_count == 40


def test_states_with_layers_first_start_at_zero(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.ones((16, 4), np.float32))
    data = CalibrationData.open(tmp_path / "c.npz", Session(layered().to_bytes()).inputs, states={"h"})
    first = next(data.batches())
    assert first["h"].shape == (2, 16, 4) and not first["h"].any()


def layered() -> Model:
    text = (
        "g (float[batch, 4] x, float[2, batch, 4] h) => (float[2, batch, 4] hn, float[2, batch, 4] y)"
        " { hn = Add(h, x) y = Tanh(hn) }"
    )
    return load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}'))


@pytest.mark.parametrize(("axis", "shape"), [(1, (5, 12, 1)), (0, (12, 5, 1))])
@pytest.mark.parametrize("dims", ["N, 1", "1, 1"])
def test_an_axis_of_steps_is_named(tmp_path: Path, axis: int, shape: tuple[int, ...], dims: str) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x, labels=np.arange(60).reshape(5, 12))
    data = opened(accumulator(dims, dims), Sequences(tmp_path / "c.npz", axis))
    ordered = np.moveaxis(x, axis, 1).reshape(5, 12)
    assert data.sample_count == 60
    np.testing.assert_array_equal(column(data, "x"), ordered.ravel())
    np.testing.assert_allclose(column(data, "h"), np.ravel([states_after(each) for each in ordered]), rtol=1e-5)
    assert np.concatenate([b.labels for b in data.labelled_batches()]).tolist() == list(range(60))  # type: ignore[misc]


def test_states_without_steps_are_what_sequences_start_with(tmp_path: Path) -> None:
    x, h = np.ones((5, 4, 1), np.float32), np.arange(5, dtype=np.float32)[:, None]
    np.savez(tmp_path / "c.npz", x=x, h=h)
    data = opened(accumulator(), Sequences(tmp_path / "c.npz", 1))
    np.testing.assert_allclose(column(data, "h"), np.ravel([states_after(x[i, :, 0], i) for i in range(5)]))


def test_states_of_every_step_are_kept(tmp_path: Path) -> None:
    x, h = np.ones((5, 4, 1), np.float32), np.arange(20, dtype=np.float32).reshape(5, 4, 1)
    np.savez(tmp_path / "c.npz", x=x, h=h)
    assert column(opened(accumulator(), Sequences(tmp_path / "c.npz", 1)), "h") == list(range(20))


@pytest.mark.parametrize(
    ("arrays", "axis", "said"),
    [
        ({"x": np.zeros((20, 1), np.float32)}, 1, "must be an axis that an array has more than its input"),
        ({"x": np.zeros((5, 4, 1), np.float32)}, 3, "must be an axis that an array has more"),
        ({"x": np.zeros((5, 4, 1), np.float32), "h": np.zeros((5, 3, 1), np.float32)}, 1, "x 4, h 3"),
    ],
)
def test_arrays_without_these_steps_are_refused(tmp_path: Path, arrays: Any, axis: int, said: str) -> None:
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(CalibrationError, match=said):
        opened(accumulator(), Sequences(tmp_path / "c.npz", axis))


def test_a_few_long_sequences_are_split_in_stretches(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).standard_normal((2, 80, 1)).astype(np.float32))
    calibration, verification = opened(accumulator(), Sequences(tmp_path / "c.npz", 1)).split()
    places = [{(int(at) // 20) for at in part.order[:, 1]} for part in (calibration, verification)]
    assert places[0].isdisjoint(places[1]) and len(places[0]) == len(places[1]) == 4


def test_an_input_that_is_missing_and_no_state_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", h=np.zeros((5, 1), np.float32))
    with pytest.raises(CalibrationError, match="lacks x"):
        opened(accumulator(), tmp_path / "c.npz")
