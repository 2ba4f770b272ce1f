"""Merging vectors: the order, the errors and who stands for whom, beside naive computation."""

from __future__ import annotations

import itertools

import numpy as np

from onnxcomp.numerics.structure.merging import merged


def within(vectors: np.ndarray, homes: np.ndarray) -> float:
    """The sum of squared distances from the means of clusters, over that from the mean of all."""
    parts = [vectors[homes == home] for home in np.unique(homes)]
    total = np.square(vectors - vectors.mean(axis=0)).sum()
    return float(sum(np.square(part - part.mean(axis=0)).sum() for part in parts) / total)


def test_errors_are_the_distances_from_the_clusters_means() -> None:
    vectors = np.random.default_rng(0).standard_normal((12, 5))
    found = merged(vectors)
    assert sorted(found.elimination.order) == list(range(12))
    for count in range(12):
        homes = found.homes(found.elimination.order[:count])
        assert np.unique(homes).size == 12 - count
        np.testing.assert_array_equal(homes[homes], homes)
        np.testing.assert_allclose(found.elimination.errors[count], within(vectors, homes), atol=1e-12)


def test_each_merge_is_the_one_that_adds_least() -> None:
    vectors = np.random.default_rng(1).standard_normal((7, 3))
    found = merged(vectors)
    for count in range(6):
        homes = found.homes(found.elimination.order[:count])
        pairs = itertools.combinations(np.unique(homes), 2)
        least = min(within(vectors, np.where(homes == other, one, homes)) for one, other in pairs)
        np.testing.assert_allclose(found.elimination.errors[count + 1], least, atol=1e-12)


def test_of_two_vectors_the_longer_one_stays() -> None:
    np.testing.assert_array_equal(merged(np.array([[1.0, 0.0], [3.0, 0.0]])).elimination.order, [0, 1])


def test_one_that_is_spared_stands_for_itself() -> None:
    found = merged(np.array([[0.0], [0.1], [5.0], [5.2]]))
    gone = found.elimination.order[:2]
    homes = found.homes(gone[1:])
    assert homes[gone[0]] == gone[0]
    assert np.unique(homes).size == 3


def test_a_single_vector_stays() -> None:
    found = merged(np.ones((1, 3)))
    np.testing.assert_array_equal(found.homes(np.array([], np.int64)), [0])
