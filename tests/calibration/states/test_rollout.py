"""onnxcomp.calibration.states.rollout: data of first steps get the states that the original makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.states.rollout import rolled_out
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session

RNG = np.random.default_rng(0)


def parsed(text: str, **values: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return load(proto)


def accumulator(dims: str = "N, 1") -> Model:
    """hn = 0.5 h + x, y = 2 hn."""
    return parsed(
        f"g (float[{dims}] x, float[{dims}] h) => (float[{dims}] y, float[{dims}] hn)"
        " <float half = {0.5}, float two = {2.0}> { a = Mul(h, half) hn = Add(a, x) y = Mul(hn, two) }"
    )


def opened(model: Model, folder: Path, **arrays: Any) -> tuple[CalibrationData, CalibrationData]:
    """The data as they are, and rolled out."""
    np.savez(folder / "c.npz", **arrays)
    session = Session(model.to_bytes())
    data = CalibrationData.open(folder / "c.npz", session.inputs, run=session.run)
    return data, rolled_out(model, session, data)


def counted(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.float32)[:, None]


def column(data: CalibrationData, name: str) -> list[float]:
    return [float(each) for feeds in data.batches() for each in feeds[name].ravel()]


@pytest.mark.parametrize("dims", ["N, 1", "1, 1"])
def test_each_state_is_what_the_samples_before_it_make(tmp_path: Path, dims: str) -> None:
    x = counted(40)
    _, rolled = opened(accumulator(dims), tmp_path, x=x, h=np.zeros_like(x), labels=np.arange(40))
    expected = []
    for start in range(0, 40, 5):  # 8 sequences of 5 steps
        state = 0.0
        for value in x[start : start + 5, 0]:
            expected.append(state)
            state = 0.5 * state + value
    assert column(rolled, "x") == x[:, 0].tolist()
    assert column(rolled, "h") == expected
    assert np.concatenate([b.labels for b in rolled.labelled_batches()]).tolist() == list(range(40))  # type: ignore[misc]
    assert "states as the original makes them" in rolled.notes[-1]


def test_sequences_are_long_where_there_are_many_samples(tmp_path: Path) -> None:
    x = counted(320)
    _, rolled = opened(accumulator(), tmp_path, x=x, h=np.zeros_like(x))
    assert column(rolled, "h").count(0.0) == 20  # 20 sequences of 16 steps begin at zero


def test_states_that_vary_are_kept(tmp_path: Path) -> None:
    data, rolled = opened(accumulator(), tmp_path, x=counted(40), h=counted(40))
    assert rolled is data


def test_a_state_that_all_samples_share_is_a_first_step(tmp_path: Path) -> None:
    _, rolled = opened(accumulator(), tmp_path, x=counted(40), h=np.full((40, 1), 4, np.float32))
    assert column(rolled, "h")[:3] == [4.0, 3.0, 3.5]  # 4, 0.5 * 4 + 1, 0.5 * 3 + 2


def test_sequences_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    _, rolled = opened(accumulator(), tmp_path, x=counted(80), h=np.zeros((80, 1), np.float32))
    sides = [{int(x - 1) // 10 for x in column(part, "x")} for part in rolled.split(seed=2)]
    assert sides[0].isdisjoint(sides[1]) and len(sides[0] | sides[1]) == 8


def test_a_model_without_a_batch_is_stepped_sample_by_sample(tmp_path: Path) -> None:
    model = parsed(
        "g (float[1, 1] x, float[2] h) => (float[1, 2] y, float[2] hn)"
        " <float half = {0.5}, int64[1] two = {2}> { a = Mul(h, half) b = Add(a, x) hn = Reshape(b, two)"
        " y = Identity(b) }"
    )
    _, rolled = opened(model, tmp_path, x=counted(16), h=np.zeros(2, np.float32))
    assert rolled.sample_count == 16
    assert [feeds["h"].tolist() for feeds in rolled.batches()][:3] == [[0, 0], [1, 1], [0, 0]]  # sequences of 2


@pytest.mark.parametrize("length", [1, 6])
def test_where_a_sample_has_steps_of_its_own_half_of_the_states_stay_zero(tmp_path: Path, length: int) -> None:
    model = parsed(
        "g (float[batch, T, 3] x, float[1, batch, 4] h0) => (float[T, 1, batch, 4] y, float[1, batch, 4] hn)"
        " { time = Transpose<perm = [1, 0, 2]>(x) y, hn = GRU<hidden_size = 4>(time, W, R, , , h0) }",
        W=RNG.standard_normal((1, 12, 3)).astype(np.float32), R=RNG.standard_normal((1, 12, 4)).astype(np.float32),
    )  # fmt: skip
    x = RNG.standard_normal((160, length, 3)).astype(np.float32)
    _, rolled = opened(model, tmp_path, x=x, h0=np.zeros((1, 160, 4), np.float32))
    states = np.concatenate([feeds["h0"] for feeds in rolled.batches()], axis=1)
    assert np.count_nonzero(~states.any(axis=(0, 2))) == (80 if length > 1 else 10)


CACHE = (
    "g (float[N, S, 2] x, float[N, P, 2] past, int64[N, S] position_ids, int64[N, M] attention_mask)"
    " => (float[N, S, 2] y, float[N, T, 2] present) <int64[1] two = {2}, float tenth = {0.1}>"
    " { present = Concat<axis = 1>(past, x) seen = Cast<to = 1>(attention_mask) column = Unsqueeze(seen, two)"
    " kept = Mul(present, column) s = ReduceSum<keepdims = 1>(kept, one) at = Cast<to = 1>(position_ids)"
    " where = Unsqueeze(at, two) w = Mul(where, tenth) z = Add(x, w) y = Add(z, s) }"
)


def cache() -> Model:
    """present = past and x; y = x + position / 10 + the sum of all rows that the mask shows."""
    return parsed(CACHE, one=np.int64([1]))


def test_empty_caches_get_rows_with_masks_and_positions_to_fit(tmp_path: Path) -> None:
    x = RNG.standard_normal((64, 1, 2)).astype(np.float32)
    zeros, ones = np.zeros((64, 1), np.int64), np.ones((64, 1), np.int64)
    _, rolled = opened(
        cache(), tmp_path, x=x, past=np.zeros((64, 0, 2), np.float32), position_ids=zeros, attention_mask=ones
    )
    seen = []
    for batch in rolled.batches():
        for i in range(len(batch["x"])):
            length = batch["past"].shape[1]
            assert batch["position_ids"][i].tolist() == [length]
            assert batch["attention_mask"][i].tolist() == [1] * (length + 1)
            at = int(np.flatnonzero((x == batch["x"][i]).all(axis=(1, 2)))[0])
            np.testing.assert_array_equal(batch["past"][i], x[at - length : at, 0])
            seen.append((at, length))
    assert sorted(seen) == [(i, i % 8) for i in range(64)]  # 8 sequences of 8 steps


def test_whole_sequences_are_cut_and_go_on_from_their_own_cache(tmp_path: Path) -> None:
    x = RNG.standard_normal((30, 6, 2)).astype(np.float32)
    places = np.broadcast_to(np.arange(6), (30, 6)).astype(np.int64)
    _, rolled = opened(
        cache(), tmp_path,
        x=x, past=np.zeros((30, 0, 2), np.float32), position_ids=places, attention_mask=np.ones((30, 6), np.int64),
    )  # fmt: skip
    seen: dict[int, int] = {}
    for batch in rolled.batches():
        names = ("past", "x", "position_ids", "attention_mask")
        for past, new, at, mask in zip(*(batch[name] for name in names), strict=True):
            whole = np.concatenate([past, new])
            assert (x == whole).all(axis=(1, 2)).sum() == 1
            assert at.tolist() == list(range(len(past), 6)) and mask.tolist() == [1] * 6
            seen[len(past)] = seen.get(len(past), 0) + 1
    assert seen == {0: 10, 3: 10, 5: 10}


def test_caches_with_rows_are_kept(tmp_path: Path) -> None:
    x = RNG.standard_normal((30, 1, 2)).astype(np.float32)
    data, rolled = opened(
        cache(), tmp_path, x=x, past=np.zeros((30, 3, 2), np.float32),
        position_ids=np.full((30, 1), 3), attention_mask=np.ones((30, 4), np.int64),
    )  # fmt: skip
    assert rolled is data


def test_a_model_that_does_not_go_on_says_so(tmp_path: Path) -> None:
    model = parsed(  # past the first step there are more rows than the mask of one can be added to
        "g (float[N, 1, 2] x, float[N, P, 2] past) => (float[N, 1, 2] y, float[N, T, 2] present)"
        " <int64[3] shape = {-1, 1, 2}, int64[1] one = {1}> { present = Concat<axis = 1>(past, x)"
        " z = Reshape(present, shape) y = Add(z, x) }"
    )
    x = RNG.standard_normal((16, 1, 2)).astype(np.float32)
    data, rolled = opened(model, tmp_path, x=x, past=np.zeros((16, 0, 2), np.float32))
    assert "does not go on from them" in rolled.notes[-1] and rolled.groups is data.groups
