"""Encodings say once what codes stand for; all that is done with them follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from onnxcomp.numerics.encodings import definition
from onnxcomp.numerics.encodings.definition import ENCODINGS
from onnxcomp.numerics.encodings.distinct_values import same_bits
from onnxcomp.numerics.encodings.encoding import (
    CodebookEncoding,
    Encoding,
    GridEncoding,
    MaskEncoding,
    RescaledEncoding,
    VectorEncoding,
    encoding_from_dict,
    float_dtype,
    split_shape,
)  # fmt: skip
from onnxcomp.numerics.encodings.expression import Array, Term, binary, cast, evaluate, gather, reshape
from onnxcomp.numerics.encodings.gradient import gradient, parameters
from onnxcomp.numerics.encodings.storage_options import estimate_bytes, storages
from onnxcomp.numerics.encodings.table_decoder import Memo
from tests.numerics.encodings.encoded import NAMES, SHAPE, sample

DTYPES = ["float32", "float64", "float16", "bfloat16"]


def expected(encoding: Encoding, codes: Array) -> Array:
    """What the codes stand for, one after another."""
    compute = np.float64 if encoding.dtype == "float64" else np.float32
    values = np.empty(SHAPE, compute)
    if isinstance(encoding, MaskEncoding):
        return codes
    if isinstance(encoding, RescaledEncoding):
        inner = expected(encoding.inner, codes)
        for place in np.ndindex(SHAPE):
            values[place] = inner[place] * encoding.factor[place[0], 0, 0]
    elif isinstance(encoding, VectorEncoding):
        axis, width = encoding.axis, encoding.codebook.shape[1]
        for place in np.ndindex(SHAPE):
            rest = (*place[:axis], *place[axis + 1 :])
            code = codes[(*rest, place[axis] // width)]
            values[place] = encoding.codebook[code, place[axis] % width]
    else:
        assert isinstance(encoding, GridEncoding | CodebookEncoding)
        split = split_shape(SHAPE, encoding.axis, encoding.block_size)
        one = np.ones((), compute) if encoding.scale is None else encoding.scale
        scale = np.broadcast_to(one, split).reshape(SHAPE)
        for place in np.ndindex(SHAPE):
            if isinstance(encoding, GridEncoding):
                points = np.broadcast_to(encoding.zero_point, split).reshape(SHAPE)
                number = compute(codes[place]) - compute(points[place])
            else:
                number = compute(encoding.codebook[codes[place]])
            values[place] = number * scale[place]
    return values.astype(float_dtype(encoding.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_decodes_each_code_by_itself(name: str, dtype: str) -> None:
    each = sample(name, dtype)
    assert same_bits(each.encoding.decode(each.codes, SHAPE), expected(each.encoding, each.codes))
    assert same_bits(each.encoding.decode(each.codes.reshape(-1), SHAPE), expected(each.encoding, each.codes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_names_what_may_be_trained_and_takes_it_back(name: str, dtype: str) -> None:
    each = sample(name, dtype)
    term = each.encoding.trainable(each.codes, SHAPE)
    arrays = parameters(term)
    assert sorted(arrays) == sorted(each.free)
    assert same_bits(evaluate(term), each.encoding.decode(each.codes, SHAPE))
    changed = {key: (array * 1.5).astype(array.dtype) for key, array in arrays.items()}
    again = each.encoding.with_arrays(changed)
    values = evaluate(term, changed)
    codes = values if isinstance(again, MaskEncoding) else each.codes
    assert same_bits(again.decode(codes, SHAPE), values)
    assert not arrays or not same_bits(values, evaluate(term))
    assert same_bits(again.with_arrays(arrays).decode(each.codes, SHAPE), evaluate(term))


def test_every_kind_has_a_sample() -> None:
    assert {type(sample(name).encoding) for name in NAMES} == set(ENCODINGS.values())


def test_zeros_under_a_mask_stay_when_the_others_are_trained() -> None:
    values = np.array([0, -0.0, 2, 0, 3], np.float32)
    term = MaskEncoding(dtype="float32").trainable(values, (5,))
    changed = evaluate(term, {"values": np.array([7, 8], np.float32)})
    assert same_bits(changed, np.array([0, -0.0, 7, 0, 8], np.float32))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"scale": np.ones((1, 7, 1))}, "scale cannot become"),
        ({"zero_point": np.ones((1, 8, 1))}, "zero_point cannot become"),  # whole numbers are not trained
        ({"levels": np.ones(())}, "no such array"),
        ({"scales": np.ones((1, 8, 1))}, "no such array"),
    ],
)
def test_refuses_arrays_that_it_does_not_have(arrays: dict[str, Array], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        sample("grid").encoding.with_arrays(arrays)


@pytest.mark.parametrize("name", NAMES)
def test_finds_the_codes_again(name: str) -> None:
    each = sample(name, "float32")
    values = each.encoding.decode(each.codes, SHAPE)
    found = each.encoding.encode(values)
    assert found is not None and same_bits(found.reshape(-1), each.codes.reshape(-1))
    changed = values.copy()
    changed[2, 3, 1] += 0.01
    assert (each.encoding.encode(changed) is None) is not isinstance(each.encoding, MaskEncoding)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mask"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_is_stored_as_what_it_is(name: str, dtype: str) -> None:
    each = sample(name, dtype)
    values = each.encoding.decode(each.codes, SHAPE)
    found = list(storages(lambda: values, each.encoding, opset=13, memo=Memo()))
    assert any(way.name.startswith(each.encoding.label) for way in found)
    assert all(same_bits(evaluate(way.term), values) for way in found)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mask"])
@pytest.mark.parametrize("shape", [(6, 7, 3), (5, 8, 4), (6, 8), (6, 8, 3, 2), ()])
def test_finds_no_codes_of_a_shape_that_its_arrays_do_not_fit(name: str, shape: tuple[int, ...]) -> None:
    each = sample(name, "float32")
    if not each.encoding.fits(shape):
        assert each.encoding.encode(np.zeros(shape, np.float32)) is None
    else:
        each.encoding.encode(np.zeros(shape, np.float32))


# --- a new encoding is one class -------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _classes_of_one_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test defines is not there for others."""
    monkeypatch.setattr(definition, "ENCODINGS", dict(ENCODINGS))


def test_a_class_without_a_term_fails_where_it_is_defined() -> None:
    with pytest.raises(TypeError, match=r"Partial: .* lacks nearest and term"):

        class Partial(Encoding):
            kind: ClassVar[str] = "partial"
            level_count = 3  # type: ignore[assignment]


def test_a_whole_class_needs_a_kind_of_its_own() -> None:
    with pytest.raises(TypeError, match="a kind of its own"):

        class Nameless(GridEncoding):
            pass

    with pytest.raises(TypeError, match="GridEncoding is 'grid', too"):

        class Again(GridEncoding):
            kind: ClassVar[str] = "grid"


def test_one_class_is_all_that_a_new_encoding_takes() -> None:
    @dataclass(frozen=True, eq=False, kw_only=True)
    class Shifted(Encoding):
        """values = levels[code] * scale + shift, a shift for each column."""

        kind: ClassVar[str] = "shifted"
        levels: Array
        scale: Array
        shift: Array

        @property
        def level_count(self) -> int:
            return int(self.levels.size)

        def term(self, codes: Term, shape: tuple[int, ...]) -> Term:
            values = binary("Mul", gather(self._array("levels"), reshape(codes, shape)), self._array("scale"))
            return cast(binary("Add", values, self._array("shift")), float_dtype(self.dtype))

        def nearest(self, values: Array) -> Array:
            every = self.levels * self.scale + self.shift[:, None]
            return np.asarray(np.abs(values[..., None] - every).argmin(axis=-1).astype(np.uint8))

    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"levels": rng.normal(size=5), "scale": np.array(2.0), "shift": rng.normal(size=40)}
    encoding = Shifted(dtype="float64", **arrays)
    codes = rng.integers(0, 5, (60, 40)).astype(np.uint8)
    values = encoding.decode(codes, codes.shape)
    assert np.array_equal(values, arrays["levels"][codes] * 2 + arrays["shift"])
    found = list(storages(lambda: values, encoding, opset=13, memo=Memo()))
    assert "shifted, 2.4 bits" in [each.name for each in found]
    assert all(same_bits(evaluate(each.term), values) for each in found)
    assert estimate_bytes(codes.shape, np.float64, encoding) < 0.2 * values.nbytes
    slopes = gradient(encoding.trainable(codes, codes.shape), np.ones(codes.shape))
    assert slopes["shift"].tolist() == [60] * 40 and sorted(slopes) == ["levels", "scale", "shift"]
    again = encoding_from_dict(encoding.to_dict())
    assert same_bits(again.decode(codes, codes.shape), values)
