"""Codebooks of vectors by output error, against the normal equations written out."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.quantizers import product_quantization as vector_fit
from onnxcomp.numerics.quantizers.product_quantization import nearest_vectors, refit_vectors
from onnxcomp.numerics.rounding.gram import output_error, shrunk

Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def case(groups: int, own: int, width: int, number: int, seed: int = 0) -> Case:
    """Weights (g, 4, 12), moment, a book and codes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((own, 40, 12)) + rng.standard_normal((own, 40, 1))
    weights = rng.standard_normal((groups, 4, 12))
    book = rng.standard_normal((number, width)).astype(np.float32)
    codes = nearest_vectors(weights.reshape(groups, 4, -1, width), book)
    return weights, shrunk(x.swapaxes(1, 2) @ x / 40), book, codes


def left(weights: np.ndarray, moment: np.ndarray, book: np.ndarray, codes: np.ndarray) -> float:
    return output_error(book[codes].reshape(weights.shape).astype(np.float64) - weights, moment)


def solved(weights: np.ndarray, moment: np.ndarray, book: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The best book by a matrix that spreads its values over one row after another."""
    number, width = book.shape
    system, wanted = np.zeros((number * width,) * 2), np.zeros(number * width)
    for group, row in np.ndindex(weights.shape[:2]):
        spread = np.zeros((weights.shape[2], number * width))
        for place, code in enumerate(codes[group, row]):
            for column in range(width):
                spread[place * width + column, code * width + column] = 1
        form = moment[group % len(moment)]
        system += spread.T @ form @ spread
        wanted += spread.T @ form @ weights[group, row]
    return np.linalg.lstsq(system, wanted, rcond=None)[0].reshape(book.shape)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_nearest_vectors_are_those_of_a_loop(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_fit, "CHUNK", 20)
    rng = np.random.default_rng(0)
    targets, book = rng.standard_normal((2, 3, 5, width)), rng.standard_normal((7, width))
    found = nearest_vectors(targets, book)
    assert found.shape == (2, 3, 5)
    for at in np.ndindex(2, 3, 5):
        assert found[at] == np.argmin([np.sum((targets[at] - vector) ** 2) for vector in book])


@pytest.mark.parametrize("shape", [(1, 1, 2, 5), (3, 3, 3, 4), (2, 1, 1, 6), (2, 2, 4, 3)])
def test_refitting_never_adds_error(shape: tuple[int, int, int, int]) -> None:
    for seed in range(6):
        weights, moment, book, codes = case(*shape, seed=seed)
        before = left(weights, moment, book, codes)
        assert left(weights, moment, refit_vectors(weights, moment, book, codes), codes) <= before * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 2, 5), (3, 3, 3, 4), (2, 1, 1, 6)])
def test_refitting_comes_to_the_solution_of_the_normal_equations(shape: tuple[int, int, int, int]) -> None:
    weights, moment, book, codes = case(*shape)
    least = left(weights, moment, solved(weights, moment, book, codes), codes)
    found = book
    for _ in range(6):
        found = refit_vectors(weights, moment, found, codes)
    assert left(weights, moment, found, codes) == pytest.approx(least, rel=1e-4)
    assert least < 0.99 * left(weights, moment, book, codes)


def test_a_vector_without_codes_stays() -> None:
    weights, moment, book, codes = case(1, 1, 2, 5)
    more = np.concatenate([book, [[7.0, -7.0]]]).astype(np.float32)
    assert refit_vectors(weights, moment, more, codes)[-1].tolist() == [7, -7]
