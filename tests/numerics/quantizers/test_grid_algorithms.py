"""What awq and gptq compute on arrays, against loops."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.quantizers.affine import fit_grid
from onnxcomp.numerics.quantizers.awq import channel_factors
from onnxcomp.numerics.quantizers.least_squares_scale import gains, output_products
from onnxcomp.numerics.rounding import gptq_blocks as gptq
from onnxcomp.numerics.rounding.error_feedback import compensated

RNG = np.random.default_rng(5)


def test_factors_are_a_power_of_the_root_mean_square_around_one() -> None:
    power = np.array([1.0, 16.0, 81.0])
    assert channel_factors(power, 1.0) == pytest.approx(3 / np.array([1.0, 4.0, 9.0]), rel=1e-3)
    assert channel_factors(power, 0.5) == pytest.approx(np.sqrt(3 / np.array([1.0, 4.0, 9.0])), rel=1e-3)


def test_factors_lose_nothing_in_half_precision_and_bear_silent_channels() -> None:
    factors = channel_factors(np.array([0.0, 1e-12, 3.7, 1e12]), 1.0)
    assert np.array_equal(factors, factors.astype(np.float16).astype(np.float32))
    assert (factors > 0).all() and factors[0] == factors[1]
    assert channel_factors(np.zeros(3), 0.7).tolist() == [1, 1, 1]


def test_gain_is_the_factor_of_least_output_error() -> None:
    old, inputs = RNG.normal(size=(1, 3, 8)), RNG.normal(size=(50, 8))
    rounded = np.round(old * 1.4)
    moment = (inputs.T @ inputs / 50)[None]
    found = gains(*output_products(old, rounded, moment), axis=1)
    for row in range(3):

        def error(factor: float, row: int = row) -> float:
            return float(np.square((factor * rounded[0, row] - old[0, row]) @ inputs.T).sum())

        tried = np.linspace(0.5, 1, 5001)
        assert found[0, row, 0] == pytest.approx(tried[np.argmin([error(each) for each in tried])], abs=2e-4)


def test_gain_of_nothing_is_one() -> None:
    zeros = np.zeros((1, 2, 4))
    assert gains(*output_products(zeros, zeros, np.eye(4)[None]), axis=None).tolist() == [[[1]]]


def test_weighted_search_leaves_least_weighted_error() -> None:
    values, weights = RNG.normal(size=(4, 200)).astype(np.float32), RNG.random((4, 200)).astype(np.float32) ** 4

    def error(scale: float, row: int) -> float:
        codes = np.clip(np.round(values[row] / scale), -4, 3)
        return float((weights[row] * np.square(codes * scale - values[row])).sum())

    scale, _ = fit_grid(values, bits=3, axis=0, search=True, weights=weights)
    for row in range(4):
        best = min(error(each, row) for each in np.linspace(0.1, 1.5, 400))
        assert error(float(scale[row, 0]), row) < 1.1 * best
    plain, _ = fit_grid(values, bits=3, axis=0, search=True, weights=np.ones_like(weights))
    assert np.array_equal(plain, fit_grid(values, bits=3, axis=0, search=True)[0])


def test_a_group_whose_weights_are_all_zero_is_fitted_as_if_they_were_equal() -> None:
    values = RNG.normal(size=(2, 50)).astype(np.float32)
    weights = np.stack([np.zeros(50), np.ones(50)])
    scale, _ = fit_grid(values, bits=3, axis=0, search=True, weights=weights)
    assert np.array_equal(scale, fit_grid(values, bits=3, axis=0, search=True)[0])


def test_wide_matrices_are_rounded_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "FEWEST_COLUMNS", 10)
    monkeypatch.setattr(gptq, "COLUMNS_PER_ROW", 1)
    old, inputs = RNG.normal(size=(1, 3, 28)).astype(np.float32), RNG.normal(size=(100, 28))
    moment = (inputs.T @ inputs / 100)[None]
    steps = np.linspace(0.3, 0.9, 28)  # of each column, so that a wrong position shows

    def rounded(target: np.ndarray, columns: np.ndarray) -> np.ndarray:
        step = steps[columns][:, None, :]
        return np.rint(target / step) * step

    found = gptq.compensated_in_parts(old, moment, rounded)
    assert found / steps == pytest.approx(np.rint(found / steps), abs=1e-4)
    for start, stop in ((0, 9), (9, 18), (18, 28)):
        part = compensated(old[:, :, start:stop], moment[:, start:stop, start:stop],
                           lambda target, columns, at=start: rounded(target, columns + at))  # fmt: skip
        assert np.array_equal(found[:, :, start:stop], part)


def test_a_part_is_all_of_a_matrix_of_usual_width() -> None:
    assert gptq.part_width(768) == 4096
    assert gptq.part_width(10) == 1024
