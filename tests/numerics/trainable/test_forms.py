"""Forms of trained weights: their gradients, and what they keep."""

import numpy as np
import pytest

from onnxcomp.numerics.encodings.encoding import (
    CodebookEncoding,
    Encoding,
    GridEncoding,
    MaskEncoding,
    RescaledEncoding,
    VectorEncoding,
)
from onnxcomp.numerics.trainable.coded import TrainedLevels, TrainedRounding
from onnxcomp.numerics.trainable.soft_rounding import TrainedChoice, beta_at
from onnxcomp.numerics.trainable.tensor import (
    TrainedNonzeros,
    TrainedTensor,
    TrainedUnderMask,
    TrainedValues,
)

SHAPE = (4, 6)


def encodings() -> dict[str, Encoding]:
    scale = np.array([0.5, 1.5, 2.0, 0.75], np.float32).reshape(4, 1)
    book = np.array([-1.25, -0.5, 0.0, 0.75, 1.5], np.float32)
    inner = GridEncoding(dtype="float32", levels=8, zero_point=np.full((4, 1), 3, np.uint8), scale=scale, axis=0)
    return {
        "codebook": CodebookEncoding(dtype="float32", codebook=book),
        "codebook with scales": CodebookEncoding(dtype="float32", codebook=book, scale=scale, axis=0),
        "grid": inner,
        "grid with a float zero point": GridEncoding(
            dtype="float32", levels=8, zero_point=np.full((4, 1), 3.25, np.float32), scale=scale, axis=0
        ),
        "blocks": GridEncoding(
            dtype="float32",
            levels=4,
            zero_point=np.asarray(1, np.uint8),
            scale=np.linspace(0.5, 2, 12, dtype=np.float32).reshape(4, 3, 1),
            axis=1,
            block_size=2,
        ),
        "rescaled": RescaledEncoding(
            dtype="float32", inner=inner, factor=np.linspace(1, 2, 6, dtype=np.float32).reshape(1, 6)
        ),
        "vectors": VectorEncoding(
            dtype="float32", axis=1, codebook=np.random.default_rng(3).normal(size=(5, 2)).astype(np.float32)
        ),
    }


def made_by(encoding: Encoding, seed: int = 0) -> np.ndarray:
    """Values on the encoding's levels."""
    wanted = np.random.default_rng(seed).normal(0, 2, SHAPE).astype(np.float32)
    return encoding.decode(encoding.nearest(wanted), SHAPE)


def forms() -> dict[str, TrainedTensor]:
    found: dict[str, TrainedTensor] = {"plain": TrainedValues(np.arange(24, dtype=np.float32).reshape(SHAPE))}
    pruned = np.where(np.arange(24).reshape(SHAPE) % 3 == 0, 1.5, 0).astype(np.float32)
    found["pruned"] = TrainedNonzeros(pruned, TrainedValues(pruned[pruned != 0]), MaskEncoding(dtype="float32"))
    for name, encoding in encodings().items():
        values = made_by(encoding)
        found[f"levels of {name}"] = TrainedLevels(encoding, values)
        if name != "vectors":
            found[f"rounding to {name}"] = TrainedRounding(encoding, values)
            found[f"choice of {name}"] = TrainedChoice(encoding, values)
    return found


FORMS = forms()


@pytest.mark.parametrize("name", FORMS)
def test_a_form_starts_at_the_values_that_it_is_made_of(name: str) -> None:
    form = FORMS[name]
    values, _ = form.settled(form.start())
    np.testing.assert_array_equal(values, form.initial)
    np.testing.assert_array_equal(form.values(form.start()), form.initial)


@pytest.mark.parametrize("name", [name for name in FORMS if not name.startswith(("rounding", "choice"))])
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    form, weights = FORMS[name], np.random.default_rng(7).normal(size=SHAPE)
    arrays = form.start()
    found = form.pull(arrays, weights.astype(np.float32))
    for key, array in arrays.items():
        for place in np.ndindex(array.shape):
            ends = []
            for step in (0.25, -0.25):  # linear in each number by itself: no step is too large
                moved = {**arrays, key: np.array(array)}
                moved[key][place] += step
                ends.append((weights * form.values(moved)).sum())
            pinned = "codebook" in name and key == "codebook" and array[place] == 0
            expected = 0.0 if pinned else (ends[0] - ends[1]) / 0.5
            assert found[key][place] == pytest.approx(expected, rel=1e-4, abs=1e-4), (key, place)


def test_levels_of_a_cluster_get_the_sum_over_the_cluster() -> None:
    book = np.array([-1.0, 2.0], np.float32)
    form = TrainedLevels(
        CodebookEncoding(dtype="float32", codebook=book), np.array([[-1, 2, 2], [2, -1, -1]], np.float32)
    )
    adjoint = np.array([[1, 10, 20], [30, 2, 4]], np.float32)
    np.testing.assert_array_equal(form.pull(form.start(), adjoint)["codebook"], [7, 60])


def test_rounding_hands_the_gradient_to_the_shadow_and_to_its_level() -> None:
    book = np.array([-1.0, 2.0], np.float32)
    form = TrainedRounding(CodebookEncoding(dtype="float32", codebook=book), np.array([[-1, 2, 2]], np.float32))
    adjoint = np.array([[1, 10, 20]], np.float32)
    found = form.pull(form.start(), adjoint)
    np.testing.assert_array_equal(found["shadow"], adjoint)
    np.testing.assert_array_equal(found["codebook"], [1, 30])


def test_a_scale_learns_from_what_rounding_leaves_as_lsq_does() -> None:
    scale = np.array([0.5, 2.0], np.float32).reshape(2, 1)
    grid = GridEncoding(dtype="float32", levels=8, zero_point=np.full((2, 1), 4, np.uint8), scale=scale, axis=0)
    values = grid.decode(np.array([[0, 3, 5], [7, 4, 1]], np.uint8), (2, 3))
    form = TrainedRounding(grid, values)
    shadow = values + np.array([[-0.3, 0.1, -0.2], [0.5, 0.7, -0.9]], np.float32)
    adjoint = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    found = form.pull({"shadow": shadow, "scale": scale}, adjoint)["scale"]
    expected = np.zeros((2, 1))
    for i, j in np.ndindex(2, 3):
        place = shadow[i, j] / scale[i, 0]
        code = min(max(round(float(place)), -4), 3)
        expected[i] += adjoint[i, j] * (code - place if -4 < place < 3 else code)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_shadow_that_moves_far_enough_takes_the_next_level() -> None:
    book = np.array([-1.0, 0.0, 2.0], np.float32)
    form = TrainedRounding(CodebookEncoding(dtype="float32", codebook=book), np.array([[0, 2]], np.float32))
    arrays = form.start()
    arrays["shadow"] = np.array([[1.1, 1.1]], np.float32)
    np.testing.assert_array_equal(form.values(arrays), [[2, 2]])
    arrays["shadow"] = np.array([[9.0, -9.0]], np.float32)
    np.testing.assert_array_equal(form.limited(arrays)["shadow"], [[2, -1]])


def test_a_shadow_starts_near_the_values_from_before_with_the_codes_it_has() -> None:
    encoding = encodings()["codebook with scales"]
    values = made_by(encoding)
    before = np.random.default_rng(5).normal(0, 2, SHAPE).astype(np.float32)
    form = TrainedRounding(encoding, values, before)
    np.testing.assert_array_equal(form.values(form.start()), values)
    assert np.abs(form.start()["shadow"] - before).sum() < np.abs(values - before).sum()


def test_a_shadow_whose_code_was_chosen_by_the_outputs_starts_in_the_middle() -> None:
    encoding = CodebookEncoding(dtype="float32", codebook=np.array([-1, 0, 1], np.float32),
                                scale=np.array([[1], [1]], np.float32), axis=0)  # fmt: skip
    values = np.array([[0, 1], [1, 0]], np.float32)
    before = np.array([[0.3, 0.4], [0.9, 0.8]], np.float32)  # 0.4 went up and 0.8 went down
    np.testing.assert_allclose(TrainedRounding(encoding, values, before).start()["shadow"], [[0.3, 1], [0.9, 0]])


@pytest.mark.parametrize("name", [name for name in FORMS if name != "plain"])
def test_what_is_trained_is_still_made_by_its_encoding(name: str) -> None:
    form, rng = FORMS[name], np.random.default_rng(11)
    arrays = form.start()
    for _ in range(5):
        units = form.units()
        moved = {key: each + 0.3 * units[key] * rng.normal(size=each.shape) for key, each in arrays.items()}
        arrays = form.limited({key: each.astype(np.float32) for key, each in moved.items()})
    values, encoding = form.settled(arrays)
    assert encoding is not None
    codes = encoding.encode(values)
    assert codes is not None
    assert encoding.decode(codes, values.shape).tobytes() == values.tobytes()
    np.testing.assert_array_equal(values, form.values(arrays))


def test_a_zero_stays_zero_and_keeps_its_sign() -> None:
    pruned = np.array([[0.0, 1.0, -0.0], [2.0, 0.0, -3.0]], np.float32)
    form = TrainedNonzeros(pruned, TrainedValues(pruned[pruned != 0]), MaskEncoding(dtype="float32"))
    arrays = {"values": np.array([5.0, 6.0, 7.0], np.float32)}
    values, encoding = form.settled(arrays)
    np.testing.assert_array_equal(values, [[0, 5, 0], [6, 0, 7]])
    assert np.signbit(values[0, 2])
    assert isinstance(encoding, MaskEncoding)
    np.testing.assert_array_equal(form.pull(arrays, np.arange(6.0).reshape(2, 3))["values"], [1, 3, 5])


def test_zeros_stay_under_a_mask_where_scales_are_shared() -> None:
    encoding = encodings()["codebook with scales"]
    values = np.where(np.arange(24).reshape(SHAPE) % 2 == 0, made_by(encoding), 0).astype(np.float32)
    form = TrainedUnderMask(values, TrainedRounding(encoding, values))
    arrays = form.start()
    arrays["shadow"] = arrays["shadow"] + 1
    settled, kept = form.settled(arrays)
    assert (settled[values == 0] == 0).all() and (settled != values).any()
    assert kept is not None and kept.encode(settled) is not None
    assert not form.pull(arrays, np.ones(SHAPE, np.float32))["shadow"][values == 0].any()


def test_levels_that_change_places_are_put_in_order() -> None:
    book = np.array([-1.0, 1.0, 3.0], np.float32)
    form = TrainedLevels(CodebookEncoding(dtype="float32", codebook=book), np.array([[-1, 1, 3, 1]], np.float32))
    values, encoding = form.settled({"codebook": np.array([2.0, 1.0, 1.0 + 1e-8], np.float32)})
    np.testing.assert_array_equal(values, [[2, 1, 1, 1]])
    assert isinstance(encoding, CodebookEncoding) and (np.diff(encoding.codebook) >= 0).all()


def test_scales_that_are_stored_in_half_the_bytes_stay_so() -> None:
    scale = np.linspace(0.5, 2, 64).astype(np.float16).astype(np.float32).reshape(64, 1)
    encoding = GridEncoding(dtype="float32", levels=4, zero_point=np.asarray(1, np.uint8), scale=scale, axis=0)
    values = encoding.decode(np.arange(128).reshape(64, 2).astype(np.uint8) % 4, (64, 2))
    form = TrainedRounding(encoding, values)
    arrays = form.start()
    arrays["scale"] = arrays["scale"] * np.float32(1.001234)
    _, made = form.settled(arrays)
    assert isinstance(made, GridEncoding) and made.scale is not None
    np.testing.assert_array_equal(made.scale.astype(np.float16).astype(np.float32), made.scale)


def test_a_choice_is_soft_first_and_one_of_the_two_levels_in_the_end() -> None:
    book = np.array([-1.0, 0.0, 2.0], np.float32)
    encoding = CodebookEncoding(dtype="float32", codebook=book)
    form = TrainedChoice(encoding, np.array([[0, 2, -1]], np.float32), np.array([[0.5, 1.5, -3.0]], np.float32))
    arrays = form.start()
    np.testing.assert_allclose(form.values(arrays, 0.0), [[0.5, 1.5, -0.98]], atol=1e-6)
    np.testing.assert_array_equal(form.values(arrays, 1.0), [[0, 2, -1]])
    weights = np.array([[1.0, -2.0, 3.0]])
    found = form.pull(arrays, weights, 0.0)["choice"]
    for place in np.ndindex(1, 3):
        ends = []
        for step in (1e-3, -1e-3):
            moved = np.array(arrays["choice"], np.float64)
            moved[place] += step
            ends.append((weights * form.values({"choice": moved}, 0.0)).sum())
        assert found[place] == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-2)


def test_a_choice_is_drawn_to_one_side_the_harder_the_later() -> None:
    form = FORMS["choice of grid"]
    arrays = {"choice": np.full(SHAPE, 0.3, np.float32)}
    assert form.penalty(arrays, 0.0) == {}
    early, late = (form.penalty(arrays, progress)["choice"] for progress in (0.3, 0.9))
    assert (early <= 0).all() and (late < early).all()
    assert beta_at(0.0) == 20 and beta_at(1.0) == 2


def test_blended_values_go_from_the_shadow_to_its_levels() -> None:
    book = np.array([0.0, 2.0], np.float32)
    encoding = CodebookEncoding(dtype="float32", codebook=book)
    form = TrainedRounding(encoding, np.array([[0, 2]], np.float32), softness=0.5)
    arrays = {"shadow": np.array([[0.5, 1.5]], np.float32), "codebook": book}
    np.testing.assert_allclose(form.values(arrays, 0.0), [[0.5, 1.5]])
    np.testing.assert_allclose(form.values(arrays, 0.25), [[0.25, 1.75]])
    np.testing.assert_array_equal(form.values(arrays, 0.5), [[0, 2]])
