"""Ternary and binary scales against trying every count of kept values."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.encodings.encoding import CodebookEncoding
from onnxcomp.numerics.quantizers.ternary import binary_scales, ternary_scales

CODEBOOK = np.array([-1, 0, 1], np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_ternary_scale_is_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((5, 1 + 4 * seed)) ** 3).astype(np.float32)
    scales = ternary_scales(rows)
    encoding = CodebookEncoding(dtype="float32", codebook=CODEBOOK, scale=scales[:, None], axis=0)
    result = encoding.decode(encoding.nearest(rows), rows.shape)
    for row, found in zip(rows.astype(np.float64), result, strict=True):
        best = np.inf
        order = np.argsort(-np.abs(row))
        for count in range(1, row.size + 1):
            kept = np.zeros(row.size)
            kept[order[:count]] = np.sign(row[order[:count]]) * np.abs(row[order[:count]]).mean()
            best = min(best, float(np.square(row - kept).sum()))
        assert float(np.square(row - found).sum()) == pytest.approx(best, rel=1e-5)


def test_ternary_by_hand() -> None:
    assert ternary_scales(np.array([[4, -4, 1, 0], [0, 0, 0, 0]], np.float32)).tolist() == [4, 1]


def test_binary_scale_is_the_mean_magnitude() -> None:
    rows = np.array([[1, -3, 0, 0], [0, 0, 0, 0]], np.float32)
    assert binary_scales(rows).tolist() == [1, 0]
    assert binary_scales(rows, skip_zeros=True).tolist() == [2, 1]


@pytest.mark.parametrize("value", [1e-45, 3e38])
def test_extremes_stay_finite_and_normal(value: float) -> None:
    rows = np.full((1, 100), value, np.float32)
    for scale in (ternary_scales(rows)[0], binary_scales(rows)[0]):
        assert np.isfinite(scale)
        assert scale >= np.finfo(np.float32).tiny


def test_float64_and_float16_choose_the_type_of_decoders() -> None:
    assert ternary_scales(np.ones((1, 3))).dtype == np.float64
    assert binary_scales(np.ones((1, 3), np.float16)).dtype == np.float32
