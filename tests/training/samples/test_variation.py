"""Samples drawn anew at each step: mixed with each other, moved, mirrored."""

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.calibration import Batch
from onnxcomp.training.samples.pictures import picture_planes
from onnxcomp.training.samples.stream import Chunk
from onnxcomp.training.samples.variation import Variation, displaced, mixed, mixing_obstacle

RNG = np.random.default_rng(0)


def chunk(feeds: dict[str, Any], axes: dict[str, int], labels: Any = None) -> Chunk:
    count = next(feeds[name].shape[axis] for name, axis in axes.items())
    return Chunk(Batch(feeds, labels, count, axes), np.zeros((count, 2), np.int64))


def pictures(count: int = 6, dtype: Any = np.float32) -> np.ndarray:
    return RNG.normal(size=(count, 5, 4, 3)).astype(dtype)


def drawn(variation: Variation, step: int, *chunks: Chunk) -> list[np.ndarray]:
    return [np.asarray(each.batch.feeds["x"]) for each in variation.varied(chunks, step)]


@pytest.mark.parametrize(("dtype", "axis"), [("float32", 0), ("float16", 1), ("float64", 2)])
def test_mixing_is_the_convex_sum_sample_by_sample(dtype: str, axis: int) -> None:
    values, others = (RNG.normal(size=(4, 4, 4)).astype(dtype) for _ in range(2))
    partners, shares = np.array([2, 0, 3, 1]), np.array([0.0, 1.0, 0.25, 0.7])
    found = mixed(values, others, partners, shares, axis)
    assert found.dtype == values.dtype
    for at in range(4):
        own, other = (np.take(each, place, axis=axis).astype(np.float64) for each, place in
                      ((values, at), (others, partners[at])))  # fmt: skip
        wanted = shares[at] * own + (1 - shares[at]) * other
        np.testing.assert_allclose(np.take(found, at, axis=axis), wanted, rtol=0, atol=2e-3 if axis == 1 else 1e-6)


def test_every_sample_lies_between_two_of_the_step_and_the_labels_of_the_other_come_along() -> None:
    x = np.eye(8, dtype=np.float32)
    (made,) = Variation(mixup=1.0).varied([chunk({"x": x}, {"x": 0}, np.arange(8))], 3)
    found, mixture = np.asarray(made.batch.feeds["x"], np.float64), made.mixture
    assert mixture is not None and mixture.labels is not None
    assert sorted(mixture.labels.tolist()) == list(range(8))
    for at in range(8):
        wanted = mixture.shares[at] * x[at] + (1 - mixture.shares[at]) * x[mixture.labels[at]]
        np.testing.assert_allclose(found[at], wanted, atol=1e-6)
    assert made.is_drawn and float(np.std(mixture.shares)) > 0.1


def test_all_inputs_of_a_sample_are_mixed_with_those_of_one_other_in_the_same_share() -> None:
    x = RNG.normal(size=(6, 2)).astype(np.float32)
    sizes = np.float32(3)
    given = chunk({"x": x, "twice": (2 * x).T.copy(), "sizes": sizes}, {"x": 0, "twice": 1})
    (made,) = Variation(mixup=0.4).varied([given], 0)
    np.testing.assert_allclose(made.batch.feeds["twice"].T, 2 * made.batch.feeds["x"], rtol=1e-5)
    assert made.batch.feeds["sizes"] is sizes


def test_samples_that_are_run_one_by_one_are_mixed_across_their_runs() -> None:
    x = np.arange(1.0, 7.0, dtype=np.float32).reshape(6, 1)
    alone = [chunk({"x": x[at : at + 1]}, {"x": 0}) for at in range(6)]
    odd = chunk({"x": np.full((1, 2), 9, np.float32)}, {"x": 0})
    found = drawn(Variation(mixup=1.0, seed=2), 0, *alone, odd)
    assert sum(float(each[0, 0]) not in x for each in found[:6]) >= 3
    np.testing.assert_array_equal(found[6], np.full((1, 2), 9))  # there is none of its shape


def test_the_seed_and_the_step_say_all_that_is_drawn() -> None:
    given = chunk({"x": pictures()}, {"x": 0})
    kinds = {"mixup": 0.7, "shift": 2, "mirror": True, "planes": {"x": (1, 2)}}
    first, again = (drawn(Variation(**kinds, seed=4), 7, given)[0] for _ in range(2))  # type: ignore[arg-type]
    np.testing.assert_array_equal(first, again)
    for seed, step in ((5, 7), (4, 8)):
        assert not np.array_equal(drawn(Variation(**kinds, seed=seed), step, given)[0], first)  # type: ignore[arg-type]


def test_without_a_wish_samples_stay_what_they_are() -> None:
    given = chunk({"x": pictures()}, {"x": 0})
    assert Variation().varied([given], 0)[0] is given
    assert Variation(shift=3, mirror=True).varied([given], 0)[0] is given  # no input is known to be a picture


@pytest.mark.parametrize("plane", [(1, 2), (2, 3)])
def test_a_moved_picture_is_read_pixel_by_pixel(plane: tuple[int, int]) -> None:
    values = RNG.normal(size=(3, 4, 5, 6)).astype(np.float32)
    moves, turned = np.array([[1, -2], [0, 0], [-3, 1]]), np.array([False, True, True])
    found = displaced(values, plane, moves, turned)
    rows, columns = (values.shape[axis] for axis in plane)
    for at in range(3):
        for row in range(rows):
            for column in range(columns):
                seen_at = columns - 1 - column if turned[at] else column
                place: list[Any] = [slice(None)] * 3
                place[plane[0] - 1], place[plane[1] - 1] = row, column
                source: list[Any] = [slice(None)] * 3
                source[plane[0] - 1] = min(max(row - moves[at, 0], 0), rows - 1)
                source[plane[1] - 1] = min(max(seen_at - moves[at, 1], 0), columns - 1)
                np.testing.assert_array_equal(found[at][tuple(place)], values[at][tuple(source)])


@pytest.mark.parametrize(
    ("body", "plane"),
    [
        ("y = Conv(x, w)", (2, 3)),
        ("t = Transpose<perm = [0, 3, 1, 2]>(x) y = Conv(t, w)", (1, 2)),
        ("a = Sub(x, c) b = Mul(a, c) y = MaxPool<kernel_shape = [2, 2]>(b)", (2, 3)),
        ("t = Transpose<perm = [0, 3, 1, 2]>(x) p = Conv(x, w) q = Conv(t, w) y = Add(p, q)", None),
        ("y = MatMul(x, c)", None),
    ],
)
def test_pictures_are_told_by_what_slides_over_them(body: str, plane: tuple[int, int] | None) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, A, B, C] x) => (float y)
        <float[2, 3, 1, 1] w = {{{", ".join(["1"] * 6)}}}, float c = {{1}}> {{ {body} }}"""
    assert picture_planes(onnx.parser.parse_model(text)) == ({} if plane is None else {"x": plane})


@pytest.mark.parametrize(
    ("feeds", "axes", "told"),
    [
        ({"x": pictures()}, {"x": 0}, None),
        ({"ids": np.zeros((4, 3), np.int64), "x": np.zeros((4, 3), np.float32)}, {"ids": 0, "x": 0}, "ids"),
        ({"x": np.zeros((4, 3), np.bool_)}, {"x": 0}, "x"),
        ({"x": np.zeros((1, 3), np.float32)}, {"x": 0}, "x"),
    ],
)
def test_what_cannot_be_mixed_is_named(feeds: dict[str, Any], axes: dict[str, int], told: str | None) -> None:
    found = mixing_obstacle([chunk(feeds, axes)])
    assert (None if found is None else found[0]) == told
