"""equalize: factors as a loop over channels finds them, and ranges that come out alike."""

from __future__ import annotations

import numpy as np

from onnxcomp.numerics.channels.cross_layer_equalization import Link, Peaks, equalizing_factors, high_biases

LARGE = 2.0**16


def peaks(values: np.ndarray, rows: list[int], columns: list[int]) -> Peaks:
    return Peaks(np.abs(values).astype(np.float64), np.array(rows), np.array(columns))


def test_two_weights_by_hand() -> None:
    first = peaks(np.array([[[4.0, 1.0], [0.5, 1.0]]]), [1, 2], [0, 0])
    second = peaks(np.array([[[1.0, 4.0]]]), [0], [1, 2])
    s = equalizing_factors([Link(np.array([1, 2]), [first], [second])], 3, largest=LARGE)
    # s = sqrt(r1 / r2): sqrt(4 / 1) = 2 and sqrt(1 / 4) = 1/2, whose geometric mean is 1
    np.testing.assert_allclose(s, [1, 2, 0.5], rtol=1e-9)
    np.testing.assert_allclose(first.values[0], [[2, 0.5], [1, 2]])
    np.testing.assert_allclose(second.values[0], [[2, 2]])


def test_chain_settles_where_every_pair_has_like_ranges() -> None:
    random = np.random.default_rng(0)
    weights = [np.exp(random.normal(size=(1, n, m)) * 2) for n, m in ((6, 5), (6, 6), (3, 6))]
    first, second = np.arange(1, 7), np.arange(7, 13)
    chain = [
        peaks(weights[0], first.tolist(), [0] * 5),
        peaks(weights[1], second.tolist(), first.tolist()),
        peaks(weights[2], [0] * 3, second.tolist()),
    ]
    links = [Link(first, [chain[0]], [chain[1]]), Link(second, [chain[1]], [chain[2]])]
    s = equalizing_factors(links, 13, largest=LARGE)
    one = np.abs(weights[0][0]) / s[first, None]
    two = np.abs(weights[1][0]) / s[second, None] * s[None, first]
    three = np.abs(weights[2][0]) * s[None, second]
    for made, read in ((one.max(1), two.max(0)), (two.max(1), three.max(0))):
        ratio = made / read
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=0.02)  # settled to 1e-3 of the logarithm a round


def test_depthwise_rows_and_columns_are_told_apart_by_group() -> None:
    weight = peaks(np.array([[[8.0]], [[2.0]]]), [3, 4], [1, 2])
    np.testing.assert_allclose(weight.row_ranges(5), [0, 0, 0, 1, 0.25])
    np.testing.assert_allclose(weight.column_ranges(5), [0, 1, 0.25, 0, 0])
    weight.scale(np.array([1, 2, 1, 4, 1.0]))
    np.testing.assert_allclose(weight.values.reshape(-1), [4, 2])


def test_dead_channels_and_lone_ones_stay() -> None:
    first = peaks(np.array([[[0.0], [3.0], [1.0]]]), [1, 2, 3], [0])
    second = peaks(np.array([[[1.0, 1.0, 0.0]]]), [0], [1, 2, 3])
    s = equalizing_factors([Link(np.array([1, 2, 3]), [first], [second])], 4, largest=LARGE)
    np.testing.assert_array_equal(s, np.ones(4))


def test_factors_stay_below_the_largest() -> None:
    first = peaks(np.array([[[1e9], [1e-9]]]), [1, 2], [0])
    second = peaks(np.array([[[1.0, 1.0]]]), [0], [1, 2])
    s = equalizing_factors([Link(np.array([1, 2]), [first], [second])], 3, largest=4.0)
    np.testing.assert_allclose(s, [1, 4, 0.25])


def test_high_biases_by_hand() -> None:
    moved = high_biases(np.array([10.0, 1.0, -4.0]), np.array([2.0, 0.5, 1.0]), 3.0)
    np.testing.assert_allclose(moved, [4, 0, 0])  # 10 - 6, 1 - 1.5, -4 - 3
