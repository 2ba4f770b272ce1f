"""onnxcomp.numerics.metrics.scales: what errors are held against, from loops over the values that count."""

import numpy as np
import pytest

from onnxcomp.numerics.metrics.scales import (
    BASIS_VECTORS,
    CONSTANT_FLOOR,
    FEW_CHANNELS,
    MIN_VECTORS,
    ROUNDING,
    WEAKEST,
    basis,
    own_scale,
    spread,
)
from tests.numerics.metrics.describing import batches

RNG = np.random.default_rng(7)
FEW, ENOUGH = MIN_VECTORS - 1, 4 * MIN_VECTORS


def about_one_mean(rows: list[np.ndarray]) -> np.ndarray:
    """The variance of each channel of the rows (n, channels)."""
    return np.mean(np.square(np.array(rows) - np.mean(rows, axis=0)), axis=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_few_samples_vary_about_one_mean_a_channel(axis: int) -> None:
    block = RNG.normal(size=(FEW, 3, 4)) + 5 * RNG.normal(size=(3, 4))
    rows = [np.moveaxis(each, axis, -1).reshape(-1, block.shape[1 + axis]) for each in block]
    got = spread(batches(block[:2], block[2:]), axis)
    np.testing.assert_allclose(got.variance, about_one_mean(list(np.concatenate(rows))))
    assert got.varies.all()


def test_without_an_axis_all_is_one_channel() -> None:
    block = RNG.normal(size=(FEW, 3, 4))
    np.testing.assert_allclose(spread(batches(block), None).variance, [block.var()])


@pytest.mark.parametrize(("count", "own_means"), [(FEW, False), (MIN_VECTORS, True), (ENOUGH, True)])
def test_from_eight_samples_on_each_element_varies_about_its_own_mean(count: int, own_means: bool) -> None:
    """Anchors: 0, 100, 200, ... are there whatever the input."""
    block = RNG.normal(size=(count, 2, 10)) + 100 * np.arange(10)
    got = spread(batches(block[:3], block[3:]), 0).variance
    about_own = [np.mean([block[:, c, at].var() for at in range(10)]) for c in range(2)]
    np.testing.assert_allclose(got, about_own if own_means else block.var(axis=(0, 2)))


def test_samples_of_different_lengths_vary_about_one_mean() -> None:
    blocks = [RNG.normal(size=(8, 2, length)) for length in (5, 9)]
    rows = [row for block in blocks for row in np.moveaxis(block, 1, -1).reshape(-1, 2)]
    np.testing.assert_allclose(spread(batches(*blocks), 0).variance, about_one_mean(rows))


@pytest.mark.parametrize("count", [FEW, ENOUGH])
def test_what_stands_in_padding_does_not_change_the_variance(count: int) -> None:
    block = RNG.normal(size=(count, 6, 2))
    mask = np.arange(6)[None] < RNG.integers(2, 7, (count, 1))
    expected = spread(batches(np.where(mask[..., None], block, 0.0), weights=mask), 1)
    got = spread(batches(np.where(mask[..., None], block, 1e4), weights=mask), 1)
    np.testing.assert_allclose(got.variance, expected.variance)
    rows = [block[sample, at] for sample in range(count) for at in range(6) if mask[sample, at]]
    np.testing.assert_allclose(got.variance, about_one_mean(rows), rtol=0.5)


def test_padded_elements_vary_about_their_own_mean_where_enough_count() -> None:
    block = RNG.normal(size=(ENOUGH, 4, 2)) + 100 * np.arange(4)[:, None]
    mask = np.arange(4)[None] < np.array([1, 2, 3, 3] * MIN_VECTORS)[:, None]
    mask[: MIN_VECTORS - 1] = True
    assert (mask.sum(axis=0) >= MIN_VECTORS).tolist() == [True, True, True, False]
    squares: list[np.ndarray] = []
    for at in range(4):
        held = block[mask[:, at], at]
        squares += list(np.square(held - (block[mask].mean(axis=0) if at == 3 else held.mean(axis=0))))
    np.testing.assert_allclose(spread(batches(block, weights=mask), 1).variance, np.mean(squares, axis=0))


def test_a_constant_channel_is_held_to_a_share_of_its_size() -> None:
    block = np.stack([np.full(20, 8.0), RNG.normal(size=20)], axis=1)
    got = spread(batches(block), 0)
    assert got.varies.tolist() == [False, True]
    assert got.variance[0] == pytest.approx((CONSTANT_FLOOR * 8.0) ** 2)


def test_a_channel_of_zeros_is_held_to_a_share_of_its_fellows_size() -> None:
    block = np.stack([np.zeros(20), np.full(20, 4.0), np.full(20, 2.0)], axis=1)
    assert spread(batches(block), 0).variance[0] == pytest.approx(CONSTANT_FLOOR**2 * (16 + 4) / 3)


def test_what_changes_by_float_rounding_only_is_constant() -> None:
    block = 8.0 * (1 + 0.5 * ROUNDING * RNG.choice([-1.0, 1.0], (20, 1)))
    assert not spread(batches(block), 0).varies.any()
    assert spread(batches(8.0 + 100 * (block - 8.0)), 0).varies.all()


def test_a_large_offset_leaves_the_spread() -> None:
    """10,000 +- 0.35 in float32."""
    block = (1e4 + 0.35 * RNG.normal(size=(50, 1))).astype(np.float32)
    got = spread(batches(block), 0)
    assert got.varies.all()
    assert got.variance[0] == pytest.approx(0.35**2, rel=0.5)


@pytest.mark.parametrize("unit", [1e-25, 1e-9, 1e9, 1e18])
def test_the_variance_follows_the_unit(unit: float) -> None:
    """Charges and masses are given in SI units, too; all of these are plain float32."""
    block = RNG.normal(size=(FEW, 3, 5))
    block[:, 2] = 0.5
    plain = spread(batches(block), 0)
    scaled = spread(batches((unit * block).astype(np.float32)), 0)
    assert scaled.varies.tolist() == plain.varies.tolist() == [True, True, False]
    np.testing.assert_allclose(scaled.variance, unit**2 * plain.variance, rtol=1e-5)


def test_nothing_but_zeros_has_a_variance_above_zero() -> None:
    got = spread(batches(np.zeros((9, 3))), 0)
    assert (got.variance > 0).all() and not got.varies.any()


def test_noise_is_held_to_a_share_of_its_size() -> None:
    """Outputs of random inputs hardly vary: then every channel has the floor, not only constant ones."""
    block = 8.0 + 1e-3 * RNG.normal(size=(20, 1))
    assert spread(batches(block), 0).variance[0] == pytest.approx(1e-6, rel=0.9)
    floor = 100 * CONSTANT_FLOOR
    assert spread(batches(block), 0, floor=floor).variance[0] == pytest.approx((8 * floor) ** 2, rel=1e-3)


def test_a_channel_near_nought_on_noise_is_held_to_its_fellows_size() -> None:
    """Noise gives about the same scores each time; one of them is small by chance, which is no scale of its own."""
    block = np.array([8.0, -8.0, 0.01]) + 1e-3 * RNG.normal(size=(20, 3))
    floor = 100 * CONSTANT_FLOOR
    assert spread(batches(block), 0, floor=floor).variance == pytest.approx(np.full(3, (8 * floor) ** 2), rel=1e-3)
    assert spread(batches(block), 0).variance[2] == pytest.approx(1e-6, rel=0.9)


@pytest.mark.parametrize(("channels", "is_raised"), [(FEW_CHANNELS, False), (FEW_CHANNELS + 1, True)])
def test_none_of_many_channels_is_held_to_less_than_a_share_of_the_median(channels: int, is_raised: bool) -> None:
    """Few may be quantities with units of their own."""
    block = RNG.normal(size=(50, channels))
    block[:, 0] *= 1e-3
    variance = spread(batches(block), 0).variance
    expected = WEAKEST * np.median(block.var(axis=0)) if is_raised else block[:, 0].var()
    assert variance[0] == pytest.approx(expected)
    np.testing.assert_allclose(variance[1:], block[:, 1:].var(axis=0))


def test_a_correction_varies_as_what_is_added() -> None:
    base = 10 * RNG.normal(size=(FEW, 1, 40))
    added = 0.1 * RNG.normal(size=base.shape)
    got = spread(batches(base + added, bases=[base]), 0, of_base=True)
    assert got.variance[0] == pytest.approx(added.var())


@pytest.mark.parametrize(("positions", "is_enough"), [(MIN_VECTORS - 1, False), (MIN_VECTORS, True)])
def test_samples_have_a_scale_of_their_own_from_eight_positions_on(positions: int, is_enough: bool) -> None:
    assert own_scale(batches(np.zeros((2, 3, 20)), np.zeros((2, 3, positions))), 0) is is_enough


def test_the_basis_holds_the_originals_directions_from_their_centre() -> None:
    block = RNG.normal(size=(3, 5, 32)) + 2.0
    found = basis(batches(block[:2], block[2:]))
    assert found is not None
    vectors = block.reshape(-1, 32)
    np.testing.assert_allclose(found[0], vectors.mean(axis=0))
    expected = [(each - found[0]) / np.linalg.norm(each - found[0]) for each in vectors]
    np.testing.assert_allclose(found[1], expected)


def test_the_basis_is_of_vectors_that_are_no_padding() -> None:
    block = RNG.normal(size=(4, 6, 32))
    mask = np.arange(6)[None] < np.array([6, 2, 3, 1])[:, None]
    found = basis(batches(np.where(mask[..., None], block, 50.0), weights=mask))
    expected = basis(batches(block[mask]))
    assert found is not None and expected is not None
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted)


def test_the_basis_has_so_many_vectors_at_most() -> None:
    found = basis(batches(RNG.normal(size=(2 * BASIS_VECTORS, 4))))
    assert found is not None and found[1].shape == (BASIS_VECTORS, 4)


@pytest.mark.parametrize("block", [RNG.normal(size=(MIN_VECTORS - 1, 32)), np.ones((20, 32))])
def test_too_few_or_equal_vectors_have_no_basis(block: np.ndarray) -> None:
    assert basis(batches(block)) is None
    assert basis(batches(np.concatenate([block, RNG.normal(size=(20, 32))]))) is not None


def test_masked_values_count_as_zero() -> None:
    block = RNG.normal(size=(FEW, 40))
    masked = np.where(RNG.uniform(size=block.shape) < 0.2, -np.inf, block)
    expected = np.where(np.isfinite(masked), masked, 0.0).var()
    assert spread(batches(masked), None).variance[0] == pytest.approx(expected)
    assert np.isfinite(spread(batches(masked), 0).variance).all()
