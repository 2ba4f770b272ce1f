"""shrunk: what is measured with noise comes nearer to what is true."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.search.shrinkage import shrunk


@pytest.mark.parametrize(("own", "noise", "most"), [(0.0, 0.5, 0.5), (0.2, 0.6, 0.5), (0.5, 0.5, 0.9), (1.0, 0.3, 1.2)])
def test_shrunk_measurements_are_nearer_to_the_truth(own: float, noise: float, most: float) -> None:
    """Squared error over many draws of ten, relative to what was seen: where noise is little, not much is lost."""
    random = np.random.default_rng(5)
    truth = 3 + own * random.standard_normal((500, 10))
    seen = truth + noise * random.standard_normal(truth.shape)
    after = np.stack([shrunk(each, noise, 0.1) for each in seen])
    gain = np.square(after - truth).mean() / np.square(seen - truth).mean()
    assert gain < most


def test_without_noise_measurements_stand() -> None:
    seen = np.array([1.0, 2.0, 5.0])
    np.testing.assert_array_equal(shrunk(seen, 0.0, 0.1), seen)


def test_by_hand() -> None:
    """The median deviation is 4, so the spread 5.93; noise of 3 is 0.256 of its square, and 90 as good as 8."""
    share = 9 / (4 * 1.4826) ** 2
    np.testing.assert_allclose(shrunk(np.array([0.0, 4.0, 90.0]), 3.0, 0.1), [4 * share, 4.0, 90 - 86 * share])


def test_one_far_off_moves_towards_the_others_and_not_they_to_it() -> None:
    moved = shrunk(np.array([0.0, 0.1, -0.1, 0.05, -3.0]), 1.5, 0.15)
    assert np.abs(moved[:4]).max() < 0.1
    assert -0.2 < moved[4] < 0
