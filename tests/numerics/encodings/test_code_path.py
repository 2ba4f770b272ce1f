"""A term is taken apart into a book of what codes stand for and a finish, and both together give the values."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.encodings.code_path import CodePath, code_path
from onnxcomp.numerics.encodings.distinct_values import same_bits
from onnxcomp.numerics.encodings.encoding import GridEncoding
from onnxcomp.numerics.encodings.expression import Term, binary, cast, evaluate, gather, literal, reshape
from tests.numerics.encodings.encoded import NAMES, SHAPE, sample

CODED = [name for name in NAMES if name != "mask"]


def operators(path: CodePath) -> tuple[list[str], list[str]]:
    """Of the book and of the finish."""
    return [step.op for step in path.book_steps], [step.op for step in path.steps[path.folded :]]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CODED)
def test_book_and_finish_give_the_values(name: str, dtype: str) -> None:
    each = sample(name, dtype)
    path = code_path(each.encoding, SHAPE)
    book = path.book(literal(np.arange(each.encoding.level_count)))
    padded = np.concatenate([each.codes.reshape(-1), np.zeros(5, np.uint8)])
    values = evaluate(path.finish(gather(book, literal(padded))))
    assert same_bits(values, each.encoding.decode(each.codes, SHAPE))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", [name for name in CODED if "grid" in name or "rescaled" in name])
def test_numbers_give_the_values(name: str, dtype: str) -> None:
    each = sample(name, dtype)
    path = code_path(each.encoding, SHAPE)
    steps, offset = path.numbering()
    numbers = literal((each.codes.astype(int) - offset).astype(np.float32))
    assert same_bits(evaluate(path.finish(numbers, start=steps)), each.encoding.decode(each.codes, SHAPE))


@pytest.mark.parametrize("name", CODED)
def test_the_levels_in_use_make_the_same_values(name: str) -> None:
    each = sample(name, "float32")
    codes = np.where(each.codes < 3, 2, 5).astype(np.uint8)
    kept, trimmed = each.encoding.trimmed(np.array([2, 5]))
    assert trimmed.level_count == kept.size < each.encoding.level_count
    renumbered = np.searchsorted(kept, codes)
    assert same_bits(trimmed.decode(renumbered, SHAPE), each.encoding.decode(codes, SHAPE))


def test_one_scale_for_all_is_part_of_the_book() -> None:
    assert operators(code_path(sample("grid of the whole").encoding, SHAPE)) == (["Cast", "Sub", "Mul"], [])
    book, finish = operators(code_path(sample("grid").encoding, SHAPE))
    assert (book, finish) == (["Cast"], ["Sub", "Mul"])
    book, finish = operators(code_path(sample("vectors along the first axis").encoding, SHAPE))
    assert (book, finish) == (["Gather"], ["Transpose"])


def test_a_scale_that_is_not_there_is_not_stored() -> None:
    points = np.arange(8).reshape(1, 8, 1)
    path = code_path(GridEncoding(dtype="float32", levels=9, zero_point=points, axis=1), SHAPE)
    term = path.finish(literal(np.zeros(SHAPE, np.float32)))
    assert evaluate(term)[0, :, 0].tolist() == [0, -1, -2, -3, -4, -5, -6, -7]
    assert getattr(term, "op", "") == "Sub"


def test_codes_that_enter_twice_have_no_book(monkeypatch: pytest.MonkeyPatch) -> None:
    def squares(self: GridEncoding, codes: Term, shape: tuple[int, ...]) -> Term:
        numbers = cast(reshape(codes, shape), np.float32)
        return binary("Mul", numbers, numbers)

    monkeypatch.setattr(GridEncoding, "term", squares)
    with pytest.raises(ValueError, match="codes enter a Mul on two ways"):
        code_path(sample("grid").encoding, SHAPE)
