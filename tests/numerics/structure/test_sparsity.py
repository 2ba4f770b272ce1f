"""Magnitude masks against a full stable sort."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numerics.structure import sparsity as module
from onnxcomp.numerics.structure.sparsity import pruned_masks

Array = NDArray[Any]


def sorted_masks(arrays: list[Array], sparsity: float) -> Array:
    """The mask of all arrays in one row, by a stable sort of all magnitudes."""
    flat = np.concatenate([np.abs(array.astype(np.float64)).ravel() for array in arrays])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(flat, kind="stable")[: round(sparsity * flat.size)]] = True
    return mask


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_masks_are_those_of_a_full_sort(sparsity: float, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in [(40, 30), (7,), (2, 3, 4)]]
    masks = pruned_masks(arrays, sparsity=sparsity)
    assert [mask.shape for mask in masks] == [array.shape for array in arrays]
    assert np.array_equal(np.concatenate([mask.ravel() for mask in masks]), sorted_masks(arrays, sparsity))


def test_ties_are_pruned_in_order_and_to_the_exact_count() -> None:
    masks = pruned_masks([np.array([1.0, -1.0]), np.array([1.0, 0.5, 1.0])], sparsity=0.6)
    assert [mask.tolist() for mask in masks] == [[True, True], [False, True, False]]


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [np.round(np.random.default_rng(seed).standard_normal(100), 1) for seed in range(3)]
    whole = pruned_masks(arrays, sparsity=0.37)
    monkeypatch.setattr(module, "CHUNK", 7)
    for left, right in zip(whole, pruned_masks(arrays, sparsity=0.37), strict=True):
        assert np.array_equal(left, right)


def test_existing_zeros_and_denormals_count_among_the_smallest() -> None:
    mask = pruned_masks([np.array([0.0, 1e-45, -0.0, 3.0], np.float32)], sparsity=0.5)[0]
    assert mask.tolist() == [True, False, True, False]


def test_nothing_in_nothing_out() -> None:
    assert pruned_masks([], sparsity=0.5) == []
    assert pruned_masks([np.zeros((0, 3))], sparsity=0.5)[0].shape == (0, 3)
