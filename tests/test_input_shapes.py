"""Shapes asked for, held against those that a model declares."""

from __future__ import annotations

import pytest

from onnxcomp.errors import ParameterError
from onnxcomp.input_shapes import Dims, parse_shape, settle, shape_words

DECLARED: dict[str, Dims] = {"ids": ("N", "T"), "mask": ("N", "T", None), "image": (None, 3, 8), "any": ()}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x=1,3,320,320", ("x", (1, 3, 320, 320))),
        ("x=1x3", ("x", (1, 3))),
        ("x= [1, 3]", ("x", (1, 3))),
        ("a=b=2", ("a=b", (2,))),
        ("4,1", ("", (4, 1))),
        ("x=", ("x", ())),
        ("past=1,0,8", ("past", (1, 0, 8))),
    ],
)
def test_how_shapes_are_written(text: str, found: tuple[str, tuple[int, ...]]) -> None:
    assert parse_shape(text) == found


@pytest.mark.parametrize("text", ["", "x", "x=a", "x=1,,2", "x=-1,2", "x=1.5", "="])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="input-shape: must be NAME=SIZES"):
        parse_shape(text)


def test_a_symbol_has_its_size_wherever_it_stands() -> None:
    assert settle(DECLARED, {"ids": (2, 5)}) == DECLARED | {"ids": (2, 5), "mask": (2, 5, None)}


def test_what_is_not_asked_for_stays_as_it_is() -> None:
    assert settle(DECLARED, {}) == DECLARED


def test_an_input_of_unknown_rank_may_have_any_shape() -> None:
    assert settle(DECLARED, {"any": (7, 7)})["any"] == (7, 7)


def test_without_a_name_it_is_the_only_input() -> None:
    assert settle({"x": (None, 4)}, {"": (3, 4)}) == {"x": (3, 4)}


WRONG = {
    "rank": ({"ids": (1,)}, r"ids has 2 dimensions \[N, T\], got 1"),
    "size": ({"image": (1, 4, 8)}, r"image must be \[\?, 3, 8\], got 4 on axis 1"),
    "name": ({"masks": (1, 1, 1)}, "the model has the inputs .*, not 'masks'. Did you mean mask?"),
    "no name": ({"": (1, 1)}, "Say which"),
    "symbol": ({"ids": (1, 5), "mask": (2, 5, 1)}, "N is 1 in ids and 2 in mask"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_the_model_cannot_have_is_refused(kind: str) -> None:
    asked, words = WRONG[kind]
    with pytest.raises(ParameterError, match=f"^input-shape: .*{words}"):
        settle(DECLARED, asked)


def test_shapes_in_words() -> None:
    assert shape_words({"x": [1, 3, 8]}) == "1x3x8"
    assert shape_words({"x": []}) == "scalar"
    assert shape_words({"a": [1], "b": [2, 2]}) == "a 1, b 2x2"
    assert shape_words({name: [1] for name in "abcde"}) == "a 1, b 1, c 1, 2 more"
