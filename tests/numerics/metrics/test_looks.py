"""onnxcomp.numerics.metrics.looks: what rows of numbers look like."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from onnxcomp.numerics.metrics.looks import (
    FLAT_ENTROPY_SHARE,
    IMAGE_SPREAD,
    MAX_LOGIT_SPREAD,
    MAX_WINNER_SHARE,
    MIN_EMBEDDING_SIZE,
    PEAKED_ENTROPY_SHARE,
    SAMPLED_ROWS,
    class_axes,
    class_look,
    is_picture,
    is_unit_interval,
    unit_channels,
)
from tests.numerics.metrics.describing import batches, softmax

RNG = np.random.default_rng(7)
SURE = RNG.normal(size=(200, 10)) * 6
UNSURE = RNG.normal(size=(200, 10)) * 1.2
FLAT = RNG.normal(size=(200, 10)) * 0.1


def entropy_share(z: np.ndarray) -> float:
    p = softmax(z)
    return float(-(p * np.log(p)).sum(axis=-1).mean() / np.log(z.shape[-1]))


def test_the_samples_of_this_test_are_what_they_are_called() -> None:
    assert entropy_share(SURE) < PEAKED_ENTROPY_SHARE < entropy_share(UNSURE)
    assert entropy_share(UNSURE) < FLAT_ENTROPY_SHARE < entropy_share(FLAT)


@pytest.mark.parametrize(
    ("block", "axis", "form"),
    [
        (softmax(SURE), 0, "probability"),
        (softmax(FLAT), 0, "probability"),
        (softmax(SURE).astype(np.float16), 0, "probability"),
        (softmax(SURE).astype(ml_dtypes.bfloat16), 0, "probability"),
        (softmax(SURE).reshape(20, 10, 10), 1, "probability"),
        (np.moveaxis(softmax(SURE).reshape(2, 10, 10, 10), -1, 1), 0, "probability"),
        (np.log(softmax(SURE)), 0, "log"),
        (SURE, 0, "logits"),
        (SURE.reshape(20, 10, 10), 1, "logits"),
        (SURE.reshape(2, 10, 10, 10), 2, "logits"),
    ],
)
def test_class_scores_show_in_every_form_and_place(block: np.ndarray, axis: int, form: str) -> None:
    look = class_look(batches(block), axis)
    assert look is not None and look.form == form and look.sure


@pytest.mark.parametrize(
    "block",
    [
        FLAT,
        SURE + 100 * np.eye(10)[0],  # one class always wins
        SURE * MAX_LOGIT_SPREAD,  # coordinates in pixels
        np.where(np.arange(10) == 3, np.nan, SURE),
        np.where(np.arange(10) == 3, -np.inf, SURE),
        SURE[:, :1],
    ],
)
def test_other_numbers_are_no_class_scores(block: np.ndarray) -> None:
    assert class_look(batches(block), 0) is None


@pytest.mark.parametrize("excess", [-0.02, 0.02])
def test_the_winner_varies_where_no_class_has_almost_all(excess: float) -> None:
    block = np.full((200, 4), -8.0)
    share = MAX_WINNER_SHARE + excess
    block[np.arange(200), np.where(np.arange(200) < share * 200, 0, 2)] = 8.0
    assert (class_look(batches(block), 0) is None) is (excess > 0)


def test_unsure_scores_may_be_classes_and_something_else() -> None:
    look = class_look(batches(UNSURE), 0)
    assert look is not None and look.form == "logits" and not look.sure


def test_the_users_word_makes_any_scores_logits() -> None:
    look = class_look(batches(FLAT * 1e4), 0, forced=True)
    assert look is not None and look.form == "logits" and look.sure


def test_the_users_word_leaves_a_distribution_one() -> None:
    look = class_look(batches(softmax(SURE)), 0, forced=True)
    assert look is not None and look.form == "probability"


@pytest.mark.parametrize(("size", "linear", "is_classes"), [(32, False, False), (32, True, True), (31, False, True)])
def test_many_flat_features_that_no_linear_operator_ends_in_are_vectors(
    size: int, linear: bool, is_classes: bool
) -> None:
    assert MIN_EMBEDDING_SIZE == 32
    features = RNG.normal(size=(200, size)) * 1.2
    assert PEAKED_ENTROPY_SHARE < entropy_share(features) < FLAT_ENTROPY_SHARE
    assert (class_look(batches(features), 0, linear=linear) is not None) is is_classes


def test_peaked_scores_are_classes_whatever_operator_ends_in_them() -> None:
    assert class_look(batches(RNG.normal(size=(200, 50)) * 8), 0, linear=False) is not None


def test_features_first_of_sequences_are_no_logits_but_distributions() -> None:
    sequence = np.swapaxes(SURE.reshape(20, 10, 10), 1, 2)
    assert class_look(batches(sequence), 0) is None
    assert class_look(batches(np.swapaxes(softmax(SURE).reshape(20, 10, 10), 1, 2)), 0) is not None


def test_an_uncertain_sample_alone_in_its_batch_does_not_decide() -> None:
    """Large inputs come one by one: all samples together say what an output is."""
    rows = np.concatenate([SURE, FLAT[:1]])
    look = class_look(batches(*(rows[at : at + 1] for at in range(len(rows)))), 0)
    assert look is not None and look.sure


def test_long_outputs_are_looked_at_throughout() -> None:
    """Not their beginning only: there one class wins everywhere."""
    rows = np.tile(SURE, (4 * SAMPLED_ROWS // len(SURE), 1))
    rows[:SAMPLED_ROWS] = SURE[0]
    assert class_look(batches(rows), 0) is not None


COLOURS = RNG.uniform(20, 235, (4, 1, 12, 12)) + RNG.normal(size=(4, 3, 12, 12)) * 10
SEGMENTS = np.eye(3)[RNG.integers(0, 3, (4, 12, 12))].transpose(0, 3, 1, 2) * 24


@pytest.mark.parametrize(
    ("block", "axis", "expected"),
    [
        (COLOURS, 0, True),
        (np.moveaxis(COLOURS, 1, -1), 2, True),
        (SEGMENTS, 0, False),  # classes go against each other
        (COLOURS / 255 * IMAGE_SPREAD * 0.9, 0, False),  # too little of a range
        (np.tile(COLOURS[:, :1], (1, 5, 1, 1)), 0, False),  # five colours
        (COLOURS[:, :, 0], 0, False),  # no map
    ],
)
def test_a_picture_is_few_channels_that_go_together(block: np.ndarray, axis: int, expected: bool) -> None:
    assert is_picture(batches(block), axis) is expected


def test_a_picture_is_no_class_scores_and_segments_are() -> None:
    assert class_look(batches(COLOURS.astype(np.float32) * 0.2), 0) is None
    assert class_look(batches(SEGMENTS), 0) is not None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x, True),
        (lambda x: x - 1e-3, False),
        (lambda x: x + 1e-3, False),
        (lambda x: x.astype(np.uint8), False),
        (lambda x: x[:0], True),
    ],
)
def test_the_unit_interval_is_closed_and_no_picture_of_bytes(
    change: Callable[[np.ndarray], np.ndarray], expected: bool
) -> None:
    assert is_unit_interval(change(np.array([0.0, 0.3, 1.0]))) is expected


def test_channels_of_chances_stand_out_in_all_batches() -> None:
    """Boxes, a score, a score that leaves the interval in the second batch, and a constant."""
    block = RNG.beta(0.3, 0.3, size=(2, 7, 4))
    block[..., 0] *= 300
    block[1, 2, 2] = 1.5
    block[..., 3] = 1.0
    for chosen in (block, np.swapaxes(block, 1, 2)):
        axis = list(chosen.shape[1:]).index(4)
        assert unit_channels(batches(chosen[:1], chosen[1:]), axis).tolist() == [False, True, False, False]


@pytest.mark.parametrize(("rank", "axes"), [(1, ()), (2, (0,)), (3, (1, 0)), (4, (0, 2)), (5, (0, 3))])
def test_classes_may_lie_last_or_first(rank: int, axes: tuple[int, ...]) -> None:
    assert tuple(class_axes(rank)) == axes
