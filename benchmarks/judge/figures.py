"""Scores in points, higher is better, from arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def percent(correct: Array) -> float:
    """Mean of zeros and ones, times 100."""
    return 100 * float(np.mean(correct, dtype=np.float64))


def macro_f1(truth: Array, found: Array) -> float:
    """Mean F1 of the classes that occur in ``truth``, times 100."""
    scores = []
    for label in np.unique(truth):
        hits = np.sum((truth == label) & (found == label))
        scores.append(2 * hits / (np.sum(truth == label) + np.sum(found == label)))
    return 100 * float(np.mean(scores))


def ranks(values: Array) -> Array:
    """Ranks from 0, ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse.reshape(-1)]


def auc(truth: Array, scores: Array) -> float:
    """Area under the ROC curve, times 100; ``truth`` is 0 or 1."""
    positive = truth.ravel() > 0
    places = ranks(scores.ravel())[positive]
    hits, misses = positive.sum(), (~positive).sum()
    return 100 * float((places.sum() - hits * (hits - 1) / 2) / (hits * misses))


def spearman(left: Array, right: Array) -> float:
    """Spearman's rank correlation, times 100; 0 where one side is constant."""
    a, b = ranks(left), ranks(right)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return 100 * float((a * b).sum() / scale) if scale else 0.0


def r2(truth: Array, found: Array) -> float:
    """Explained share of the variance, times 100."""
    return 100 * float(1 - np.sum((truth - found) ** 2) / np.sum((truth - truth.mean(axis=0)) ** 2))


def edit_distance(left: list[int], right: list[int]) -> int:
    """Levenshtein distance of two sequences."""
    row = list(range(len(right) + 1))
    for i, one in enumerate(left, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]
