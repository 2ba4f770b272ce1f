"""Lattices say the same as the encodings that they are made of."""

import numpy as np
import pytest

from onnxcomp.numerics.encodings.encoding import CodebookEncoding, GridEncoding
from onnxcomp.numerics.quantizers.level_set import MANY_VALUES, Lattice, Places, lattice_of, with_lattice
from tests.numerics.encodings.encoded import SHAPE, sample

WEIGHT = np.random.default_rng(0).standard_normal((6, 8, 3)).astype(np.float32)
BOOK = np.array([-1.5, -0.25, 0.0, 0.5, 2.0], np.float32)


def grid(shape: tuple[int, ...], **where: int) -> GridEncoding:
    scale = np.random.default_rng(1).uniform(0.2, 0.6, shape).astype(np.float32)
    zero_point = np.random.default_rng(2).integers(0, 8, shape).astype(np.uint8)
    return GridEncoding(dtype="float32", levels=8, scale=scale, zero_point=zero_point, **where)


ENCODINGS = {
    "tensor": grid(()),
    "channel": grid((1, 8, 1), axis=1),
    "block": grid((6, 4, 1, 3), axis=1, block_size=2),
    "integers": GridEncoding(dtype="float32", levels=8, zero_point=np.uint8(3)),
    "codebook": CodebookEncoding(dtype="float32", codebook=BOOK),
    "scaled": CodebookEncoding(dtype="float32", codebook=BOOK, scale=np.full((6, 1, 1), 0.5, np.float32), axis=0),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_agrees_with_the_encoding(name: str) -> None:
    encoding = ENCODINGS[name]
    lattice = lattice_of(encoding, WEIGHT.shape)
    codes = lattice.nearest(WEIGHT)
    assert np.array_equal(codes, encoding.nearest(WEIGHT))
    assert lattice.values(codes) == pytest.approx(encoding.decode(codes, WEIGHT.shape), rel=1e-6)
    assert Places(lattice).rounded(WEIGHT) == pytest.approx(lattice.values(codes))
    back = with_lattice(encoding, lattice)
    assert back.to_dict() == encoding.to_dict()


@pytest.mark.parametrize("name", ["rescaled", "vectors along the last axis", "mask"])
def test_refuses_an_encoding_that_is_no_lattice(name: str) -> None:
    with pytest.raises(ValueError, match="make no lattice"):
        lattice_of(sample(name).encoding, SHAPE)  # type: ignore[arg-type]


def test_other_scales_and_levels_come_back_in_the_encoding() -> None:
    scaled = ENCODINGS["scaled"]
    lattice = lattice_of(scaled, WEIGHT.shape)
    changed = Lattice(lattice.level * 2, lattice.scale * 3, lattice.offset, lattice.unit)
    back = with_lattice(scaled, changed)
    assert isinstance(back, CodebookEncoding)
    assert back.codebook.tolist() == [-3, -0.5, 0, 1, 4]
    assert back.scale is not None and back.scale.tolist() == [[[1.5]]] * 6


def test_drawing_moves_away_from_the_middle_up_to_a_level() -> None:
    lattice = Lattice(np.array([0.0, 1.0, 3.0]), np.array([2.0]), np.array([1.0]), np.zeros(6, np.int64))
    # In levels: 0.4, 0.5, 1.5, 2.0, below the lowest, beyond the highest.
    values = (np.array([0.4, 0.5, 1.5, 2.0, -2.0, 7.0]) - 1) * 2
    drawn = Places(lattice).drawn(values, 2.0)
    assert drawn / 2 + 1 == pytest.approx([0.3, 0.5, 1.0, 2.0, 0.0, 3.0])
    assert Places(lattice).drawn(values, 1.0) / 2 + 1 == pytest.approx([0.4, 0.5, 1.5, 2.0, 0.0, 3.0])


def test_a_unit_of_zeros_and_a_single_level_bear_rounding() -> None:
    lattice = Lattice(np.array([0.75]), np.array([0.0, 2.0]), np.zeros(2), np.array([0, 1]))
    assert Places(lattice).rounded(np.array([3.0, -1.0])).tolist() == [0.0, 1.5]
    assert Places(lattice).drawn(np.array([3.0, -1.0]), 4.0).tolist() == [0.0, 1.5]


@pytest.mark.parametrize("name", ["channel", "block", "scaled"])
def test_an_encoding_of_another_shape_does_not_fit(name: str) -> None:
    encoding = ENCODINGS[name]
    assert encoding.fits((6, 8, 3))
    for shape in ((8, 6, 3), (6, 8, 3, 1), (6, 8), (8,), (7, 9, 3), ()):
        assert not encoding.fits(shape), shape
        assert encoding.encode(np.zeros(shape, np.float32)) is None


def test_zero_points_of_another_shape_do_not_fit() -> None:
    encoding = GridEncoding(dtype="float32", levels=8, zero_point=np.zeros((1, 5), np.uint8))
    assert encoding.fits((4, 5)) and not encoding.fits((5, 4))


@pytest.mark.parametrize("count", [1, 2, 20, 255, 256])
def test_many_values_get_the_codes_that_few_get(count: int) -> None:
    rng = np.random.default_rng(count)
    level = np.sort(rng.standard_normal(count))
    lattice = Lattice(level, np.array([0.5, 2.0]), np.zeros(2), np.tile([0, 1], 2 * MANY_VALUES))
    values = np.append(rng.standard_normal(4 * MANY_VALUES - 2), [np.inf, -np.inf])
    scaled = values / lattice.scale[lattice.unit]
    wanted = np.abs(np.clip(scaled, -9, 9)[:, None] - level).argmin(axis=1)
    places = Places(lattice)
    assert np.array_equal(places.codes(values), wanted)
    one_by_one = [places.codes(values[at : at + 7], slice(at, at + 7)) for at in range(0, values.size, 7)]
    assert np.array_equal(np.concatenate(one_by_one), wanted)
