"""Random directions of outputs: v with E v = 0 and E v v^T = d^2 loss / dz^2, where z is what it should be.

    classes     sqrt(p) * e - p (sqrt(p) . e)                  v v^T on average: diag(p) - p p^T
    values      e sqrt(2) / spread
    chances     e / sqrt(p (1 - p))
    vectors     (e - u (u . e)) / |z|,  u = z / |z|

e: independent signs. Where a model gives what it should, its loss has no gradient, but for weights w with z = z(w)

    E (d(v . z) / dw)^2   =   the diagonal of  J^T H J,   J = dz / dw,  H = d^2 loss / dz^2

which is the second derivative of the loss there. A class drawn from p (as for the Fisher matrix, of which this is a
form) has the same covariance, but of a model that is sure it nearly always says the same, and tells nothing.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.training.loss.terms import LEAST, LEAST_NORM, ChanceTerm, ClassTerm, LossTerm, ValueTerm, VectorTerm

Array = NDArray[Any]


@functools.singledispatch
def direction(term: LossTerm, target: Array, rng: np.random.Generator) -> Array:
    """Of the student's tensor, float64 and of its shape. target: the teacher's tensor for the same samples.

    Raises TypeError for a term that is not least where student and teacher agree.
    """
    raise TypeError(f"{type(term).__name__} has no direction")


@direction.register
def _of_classes(term: ClassTerm, target: Array, rng: np.random.Generator) -> Array:
    chances = np.exp(term.softened(target))
    signed = np.sqrt(chances) * _signs(chances.shape, rng)
    drawn = signed - chances * signed.sum(axis=-1, keepdims=True)
    drawn *= np.sqrt(term.weight / max(1, chances[..., 0].size))
    moved: Array = np.moveaxis(drawn, -1, term.axis)
    if term.form == "probability":
        moved = moved / (np.maximum(np.asarray(target, np.float64), 0) + LEAST)
    return moved


@direction.register
def _of_values(term: ValueTerm, target: Array, rng: np.random.Generator) -> Array:
    size = np.sqrt(2 * term.weight / max(1, target.size)) / np.asarray(term.spread, np.float64)
    return np.asarray(_signs(target.shape, rng) * size)


@direction.register
def _of_chances(term: ChanceTerm, target: Array, rng: np.random.Generator) -> Array:
    p = np.clip(np.asarray(target, np.float64), 0, 1)
    bend = p / np.square(p + LEAST) + (1 - p) / np.square(1 - p + LEAST)
    return np.asarray(_signs(target.shape, rng) * np.sqrt(term.weight * bend / max(1, target.size)))


@direction.register
def _of_vectors(term: VectorTerm, target: Array, rng: np.random.Generator) -> Array:
    vectors = np.asarray(target, np.float64)
    norm = np.sqrt(np.square(vectors).sum(axis=-1, keepdims=True) + LEAST_NORM)
    unit, drawn = vectors / norm, _signs(vectors.shape, rng)
    across = drawn - unit * (unit * drawn).sum(axis=-1, keepdims=True)
    return np.asarray(across / norm * np.sqrt(term.weight / max(1, vectors[..., 0].size)))


def _signs(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Independent, 1 or -1."""
    return np.asarray(rng.integers(0, 2, shape).astype(np.float64) * 2 - 1)
