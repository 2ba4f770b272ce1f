"""onnxcomp.numerics.metrics.readings: what outputs are taken for, and what the lenses that they get then see."""

import ml_dtypes
import numpy as np
import pytest

from onnxcomp.numerics.metrics.lenses import (
    BALANCED_FACTOR,
    CHANNEL_FACTOR,
    CLASS_FACTOR,
    CORRECTION_FACTOR,
    VALUES_FACTOR,
    CosineShift,
    RelativeError,
)
from onnxcomp.numerics.metrics.readings import (
    BESIDE_CLASSES,
    BESIDE_EMBEDDING,
    KINDS,
    MAX_CHANNELS,
    PROBABILITY_SPREAD,
    RAREST,
    balanced,
)
from onnxcomp.numerics.metrics.scales import CONSTANT_FLOOR
from tests.numerics.metrics.describing import described, measured, softmax

RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(40, 10)) * 6
UNSURE = RNG.normal(size=(200, 10)) * 1.2
UNIT = RNG.normal(size=(60, 64))
PICTURE = RNG.uniform(20, 235, (4, 1, 12, 12)) + RNG.normal(size=(4, 3, 12, 12)) * 10
SEGMENTS = RNG.normal(size=(4, 12, 12, 3)).transpose(0, 3, 1, 2) * 8


@pytest.mark.parametrize(
    ("block", "kind", "axis"),
    [
        (softmax(LOGITS), "classes", 0),
        (softmax(LOGITS).astype(np.float16), "classes", 0),
        (softmax(LOGITS).astype(ml_dtypes.bfloat16), "classes", 0),
        (np.log(softmax(LOGITS)), "classes", 0),
        (softmax(LOGITS).reshape(4, 10, 10), "classes", 1),
        (np.moveaxis(softmax(RNG.normal(size=(3, 5, 6, 4))), -1, 1), "classes", 0),
        (LOGITS, "classes", 0),
        (LOGITS.reshape(4, 10, 10), "classes", 1),
        (SEGMENTS, "classes", 0),
        (PICTURE, "values", None),
        (LOGITS + 100 * np.eye(10)[0], "values", None),  # one class always wins
        (LOGITS * 100, "values", None),  # coordinates in pixels
        (RNG.beta(0.3, 0.3, size=(9, 1)), "probabilities", None),
        (RNG.beta(0.3, 0.3, size=(9, 3, 8, 8)), "probabilities", None),
        (UNIT, "embedding", None),
        (RNG.normal(size=(5, 7, 32)) * 0.3, "embedding", None),
        (RNG.normal(size=(20, 4)) * 0.1 + 1, "values", None),
        (RNG.normal(size=(2, 64)) * 0.1, "values", None),  # too few vectors for a basis
        (np.arange(9), "labels", None),
        (np.arange(9, dtype=np.uint16), "labels", None),
        (np.arange(9)[:, None] % 2 == np.ones(2, bool), "labels", None),
        (np.array(["a", "b"], object), "labels", None),
        (RNG.integers(0, 255, (2, 3, 8, 8)).astype(np.uint8), "values", None),
    ],
)
def test_tells_what_an_output_looks_like(block: np.ndarray, kind: str, axis: int | None) -> None:
    output = described(block, linear=False)
    assert (output.kind, output.axis, output.silent) == (kind, axis, "")
    assert kind in KINDS and output.lenses
    assert output.has_classes is (kind == "classes")


@pytest.mark.parametrize(
    ("blocks", "silent"),
    [
        ([], "no values"),
        ([np.zeros((0, 4))], "no values"),
        ([np.zeros((3, 0), np.int64)], "no values"),
        ([np.full((3, 4), np.nan)], "not finite"),
        ([np.full((3, 4), -np.inf), np.full((2, 4), np.nan)], "not finite"),
        ([np.ones((3, 4))], "constant"),
        ([np.tile(np.arange(4.0), (3, 1)), np.tile(np.arange(4.0), (2, 1))], "constant"),
        ([np.tile(np.arange(4.0), (3, 1)) * (1 + 1e-8 * RNG.normal(size=(3, 1)))], "constant"),
        ([np.ones((3, 4), np.int64)], "constant"),
        ([np.array(["a", "a"], object)], "constant"),
        ([np.ones((1, 4))], ""),  # one sample cannot tell
        ([np.ones((3, 4)), np.zeros((3, 4))], ""),
        ([np.ones((1, 4)), np.ones((1, 5))], ""),
    ],
)
def test_outputs_that_show_nothing_say_why(blocks: list[np.ndarray], silent: str) -> None:
    assert described(*blocks).silent == silent


@pytest.mark.parametrize("asked", [kind for kind in KINDS if kind not in ("ignore", "labels")])
def test_the_users_word_beats_every_guess(asked: str) -> None:
    integers = np.arange(80).reshape(20, 4)
    for block in (softmax(LOGITS), LOGITS, np.clip(UNIT, -1, 1), RNG.uniform(size=(20, 4)), integers):
        assert described(block, asked=asked).kind == asked


def test_labels_and_nothing_on_request() -> None:
    output = described(np.array([[1.0, 2.0], [3.0, 4.0]]), asked="labels")
    assert output.kind == "labels"
    assert measured(output, np.array([[1.0, 2.0]]), np.array([[1.0, 2.5]])) == {"labels": 0.5}
    ignored = described(LOGITS, asked="ignore")
    assert ignored.kind == "ignore" and not ignored.lenses and ignored.silent == "left out on request"


def test_integers_that_were_made_by_rounding_are_values() -> None:
    sound = np.round(RNG.normal(size=(20, 50)) * 1000).astype(np.int16)
    assert described(sound).kind == "labels"
    assert described(sound, are_numbers=True, linear=False, channel_axes=()).kind != "labels"


# --- classes ---


def test_class_divergence_is_kl_times_one_plus_inverse_entropy() -> None:
    sure = 2 * LOGITS
    p, q = softmax(sure), softmax(sure + RNG.normal(size=LOGITS.shape) * 1e-3)
    output = described(p)
    entropy = np.mean([-sum(v * np.log(v) for v in row) for row in p])
    assert output.entropy == pytest.approx(entropy)
    naive = np.mean([sum(a * np.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)])
    assert 1 + 1 / entropy > CLASS_FACTOR
    assert measured(output, p, q)["classes"] == pytest.approx(naive * (1 + 1 / entropy), rel=5e-3)


def test_logits_and_their_softmax_have_the_same_class_divergence() -> None:
    other = LOGITS + RNG.normal(size=LOGITS.shape) * 0.1
    p, q = softmax(LOGITS), softmax(other)
    by_softmax = measured(described(p), p, q)
    by_logits = measured(described(LOGITS), LOGITS, other)
    by_logarithm = measured(described(np.log(p)), np.log(p), np.log(q))
    for name in ("classes", "balanced classes"):
        assert by_logits[name] == pytest.approx(by_softmax[name], rel=1e-9)
        assert by_logarithm[name] == pytest.approx(by_softmax[name], rel=1e-9)


def test_entropy_is_of_positions_that_are_no_padding() -> None:
    scores = softmax(RNG.normal(size=(6, 5, 4)) * 4)
    mask = np.arange(5)[None] < np.array([5, 4, 3, 2, 1, 5])[:, None]
    disturbed = np.where(mask[..., None], scores, 0.25)
    own = -np.sum(scores * np.log(scores), axis=-1)
    winners = disturbed.argmax(axis=-1)
    weighed = own * balanced(np.bincount(winners.ravel()).astype(float))[winners]
    by_position, by_class = (
        np.mean([row[kept].mean() for row, kept in zip(each, mask, strict=True)]) for each in (own, weighed)
    )
    assert described(disturbed, weights=mask).entropy == pytest.approx(max(by_position, by_class))


def test_balanced_classes_weigh_a_rare_class_like_a_frequent_one() -> None:
    counts = np.array([950.0, 0.0, 50.0, RAREST])
    weights = balanced(counts)
    assert (weights * counts).sum() == pytest.approx(counts.sum())  # mean weight 1
    assert weights[0] * counts[0] == pytest.approx(weights[2] * counts[2])
    assert weights[2] * counts[2] == pytest.approx(weights[3] * counts[3])


def test_classes_that_hardly_win_do_not_rule() -> None:
    """One position of a thousand is no estimate of what a class loses."""
    weights = balanced(np.array([1000.0, 1.0, 0.0]))
    assert weights[1] == weights[2] == pytest.approx(1000 / RAREST * weights[0])


def test_a_rare_class_that_is_lost_shows_in_the_balanced_lens() -> None:
    """Background everywhere, and in one pixel of fifty the class that the model is for."""
    wins = (np.arange(400).reshape(4, 100) % 50 == 0).astype(int)
    reference = softmax(np.eye(2)[wins] * 6)
    candidate = np.where(wins[..., None] == 1, softmax(np.array([3.0, 0.0])), reference)
    found = measured(described(reference), reference, candidate)
    plain = found["classes"] / described(reference).lenses[0].factor  # type: ignore[attr-defined]
    assert found["balanced classes"] / BALANCED_FACTOR == pytest.approx(25 * plain)


def test_scores_have_a_guard_of_values_that_a_distribution_does_not_need() -> None:
    """A regression taken for class scores: all scores shifted alike leave the classes."""
    shifted = LOGITS + 5.0
    found = measured(described(LOGITS), LOGITS, shifted)
    expected = BESIDE_CLASSES * VALUES_FACTOR * 25 / np.square(LOGITS - LOGITS.mean(axis=0)).mean()
    assert found["classes"] == pytest.approx(0, abs=1e-9)
    assert found["values"] == pytest.approx(expected)
    assert "values" not in measured(described(softmax(LOGITS)), softmax(LOGITS), softmax(shifted))


def test_unsure_classifiers_are_read_as_classes_beside_values() -> None:
    output = described(UNSURE, channel_axes=(0,))
    assert output.kind == "values" and output.has_classes and output.axis == 0
    found = measured(output, UNSURE, UNSURE + 0.1 * RNG.normal(size=UNSURE.shape))
    assert {"classes", "balanced classes", "values", "worst channel"} <= found.keys()
    assert all(value > 0 for value in found.values())


def test_layer_norm_features_are_embeddings_and_a_linear_ends_unsure_scores_are_not() -> None:
    features = RNG.normal(size=(200, 48))
    features = (features - features.mean(axis=1, keepdims=True)) / features.std(axis=1, keepdims=True)
    output = described(features, linear=False, channel_axes=(0,))
    assert output.kind == "embedding" and not output.has_classes
    assert described(features, linear=True, channel_axes=(0,)).has_classes


def test_three_classes_of_segments_have_class_lenses_and_a_picture_has_none() -> None:
    assert "classes" in measured(described(SEGMENTS, channel_axes=(0, 2)), SEGMENTS, SEGMENTS)
    found = measured(described(PICTURE, channel_axes=(0, 2)), PICTURE, PICTURE)
    assert found.keys() == {"values", "worst channel", "samples"}


# --- values ---


def test_values_are_measured_channel_by_channel() -> None:
    reference = np.stack([RNG.normal(size=50) * 1000, RNG.normal(size=50) * 0.01], axis=1)
    candidate = reference + np.array([1.0, 0.001])
    output = described(reference, channel_axes=(0,))
    errors = [1.0 / reference[:, 0].var(), 0.001**2 / reference[:, 1].var()]
    found = measured(output, reference, candidate)
    assert found["values"] == pytest.approx(VALUES_FACTOR * np.mean(errors))
    assert found["worst channel"] == pytest.approx(CHANNEL_FACTOR * max(errors))


@pytest.mark.parametrize("axis", [0, 1])
def test_the_worst_channel_is_found_on_whichever_axis_it_lies(axis: int) -> None:
    """Both ends are looked along: (samples, channels, positions) and (samples, positions, channels)."""
    reference = np.random.default_rng(11).normal(size=(20, 16, 16))
    candidate = reference.copy()
    np.moveaxis(candidate, 1 + axis, 0)[3] += 1.0
    worst = measured(described(reference, channel_axes=(0, 1), asked="values"), reference, candidate)["worst channel"]
    assert worst == pytest.approx(CHANNEL_FACTOR, rel=0.3)
    other = measured(described(reference, channel_axes=(1 - axis,), asked="values"), reference, candidate)
    assert other["worst channel"] < 0.2 * worst


def detections() -> np.ndarray:
    """(samples, boxes, 4 coordinates in pixels and 3 scores, of which most are near 0)."""
    boxes = RNG.uniform(0, 640, (12, 60, 4))
    scores = RNG.uniform(size=(12, 60, 3)) ** 8
    return np.concatenate([boxes, scores], axis=2)


@pytest.mark.parametrize("is_first", [False, True])
def test_boxes_do_not_drown_the_scores_beside_them(is_first: bool) -> None:
    reference = detections()
    candidate = reference.copy()
    candidate[..., 4:] = RNG.permutation(candidate[..., 4:].reshape(-1, 3)).reshape(12, 60, 3)
    if is_first:
        reference, candidate = (np.swapaxes(each, 1, 2) for each in (reference, candidate))
    found = measured(described(reference, channel_axes=(0, 1)), reference, candidate)
    assert described(reference, channel_axes=(0, 1)).kind == "values"
    assert found["worst channel"] > CHANNEL_FACTOR  # an error of twice the variance
    assert found["probabilities"] > 0 and "balanced probabilities" in found
    flat = np.square(candidate - reference).mean() / reference.var()
    assert VALUES_FACTOR * flat < 1e-4


def test_chances_beside_others_are_held_as_chances() -> None:
    reference = detections()
    candidate = reference.copy()
    candidate[..., :4] += 1.0
    found = measured(described(reference, channel_axes=(1,)), reference, candidate)
    assert found["probabilities"] == 0 < found["values"]


def test_a_constant_channel_is_held_to_a_thousandth_of_its_size_and_does_not_dilute() -> None:
    reference = np.stack([np.full(20, 8.0), RNG.normal(size=20)], axis=1)
    output = described(reference, channel_axes=(0,))
    off = measured(output, reference, reference + np.array([8.0 * CONSTANT_FLOOR, 0]))
    assert off["values"] == 0
    assert off["worst channel"] == pytest.approx(CHANNEL_FACTOR)
    moved = measured(output, reference, reference + np.array([0, reference[:, 1].std()]))
    assert moved["values"] == pytest.approx(VALUES_FACTOR)


def test_regressions_with_an_offset_are_held_to_their_spread() -> None:
    """10,000 +- 0.35 in float32: half the spread off is much, though it is a fifty-thousandth of the size."""
    reference = (1e4 + 0.35 * RNG.normal(size=(100, 1))).astype(np.float32)
    output = described(reference, channel_axes=(0,))
    assert output.kind == "values"
    found = measured(output, reference, reference + np.float32(0.175))
    assert found["values"] == pytest.approx(VALUES_FACTOR / 4, rel=0.5)


@pytest.mark.parametrize("unit", [1e-25, 1e-12, 1e12])
def test_the_unit_of_values_does_not_matter(unit: float) -> None:
    reference = RNG.normal(size=(20, 3)) * np.array([1.0, 5.0, 0.2]) * 3 + 100
    candidate = reference + 0.01 * RNG.normal(size=(20, 3))
    expected = measured(described(reference, channel_axes=(0,), asked="values"), reference, candidate)
    scaled = described(unit * reference, channel_axes=(0,), asked="values")
    assert measured(scaled, unit * reference, unit * candidate) == pytest.approx(expected)


def test_anchors_do_not_hide_what_is_told() -> None:
    """Each element is far from its neighbours whatever the input, and changes little with it."""
    anchors = 100 * np.arange(30)[:, None] + np.zeros(2)
    reference = anchors + RNG.normal(size=(20, 30, 2))
    candidate = anchors + RNG.normal(size=(20, 30, 2))
    found = measured(described(reference, channel_axes=(1,)), reference, candidate)
    assert found["values"] == pytest.approx(2 * VALUES_FACTOR, rel=0.2)


def test_what_is_lost_of_quiet_samples_shows_in_their_own_scale() -> None:
    sound = RNG.normal(size=(20, 1, 50))
    sound[10:] /= 100
    candidate = sound.copy()
    candidate[10:] = 0
    found = measured(described(sound, channel_axes=(0,)), sound, candidate)
    assert found["values"] < 1e-3 * VALUES_FACTOR < found["samples"]
    assert "samples" not in measured(described(sound[..., :7], channel_axes=(0,)), sound[..., :7], sound[..., :7])


def test_denoisers_are_held_to_what_they_take_away() -> None:
    noisy = RNG.normal(size=(20, 1, 100))
    taken = 0.1 * RNG.normal(size=noisy.shape)
    output = described(noisy + taken, bases=[noisy], channel_axes=(0,))
    found = measured(output, noisy + taken, noisy)  # a model that does nothing
    assert found["correction"] == pytest.approx(CORRECTION_FACTOR, rel=0.2)
    assert found["values"] < 0.02 * VALUES_FACTOR


def test_outputs_that_share_their_inputs_shape_only_are_no_corrections() -> None:
    noise = RNG.normal(size=(20, 1, 100))
    other = RNG.normal(size=(20, 1, 100))
    assert "correction" not in measured(described(other, bases=[noise], channel_axes=(0,)), other, other)


def test_what_has_the_shape_of_an_input_is_no_embedding_of_it() -> None:
    assert described(UNIT, bases=[UNIT + 1], linear=False).kind == "values"


def test_padding_lies_on_the_axis_of_positions_and_never_among_channels() -> None:
    """As many channels as positions, twice: a mask of positions must not be laid over channels."""
    block = RNG.normal(size=(9, 4, 8)) + 5
    mask = np.arange(4)[None] < np.array([4, 1, 2] * 3)[:, None]
    candidate = np.where(mask[..., None], block, 1e3)
    found = measured(described(block, weights=mask, channel_axes=(0, 1), asked="values"), block, candidate, mask)
    assert found and all(value == 0 for value in found.values())


@pytest.mark.parametrize("size", [MAX_CHANNELS, MAX_CHANNELS + 1])
def test_axes_too_long_for_channels_or_of_changing_length_hold_none(size: int) -> None:
    output = described(RNG.normal(size=(9, 2, size)) * 0.01, channel_axes=(1,), asked="values")
    first = output.lenses[0]
    assert isinstance(first, RelativeError)
    assert (first.axis is None) is (size > MAX_CHANNELS)
    changing = described(*(RNG.normal(size=(4, 3, length)) for length in (5, 6)), channel_axes=(1,), asked="values")
    assert isinstance(changing.lenses[0], RelativeError) and changing.lenses[0].axis is None


# --- probabilities and embeddings ---


def test_probabilities_are_chances_and_values_with_a_least_spread() -> None:
    """A score near 0 throughout is not asked for a thousandth of its size."""
    reference = np.stack([RNG.uniform(size=50), 1e-3 * RNG.uniform(size=50)], axis=1)
    candidate = reference + np.array([0.0, 1e-2])
    found = measured(described(reference, channel_axes=(0,), asked="probabilities"), reference, candidate)
    assert found["worst channel"] == pytest.approx(CHANNEL_FACTOR / 6 * 1e-4 / PROBABILITY_SPREAD**2)
    assert {"probabilities", "balanced probabilities", "values"} <= found.keys()


def test_embeddings_have_a_guard_of_values_beside_the_shift_of_cosines() -> None:
    output = described(UNIT, channel_axes=(0,), linear=False)
    candidate = UNIT + 0.3 * RNG.normal(size=UNIT.shape)
    found = measured(output, UNIT, candidate)
    lens = output.lenses[0]
    assert isinstance(lens, CosineShift) and lens.basis.shape == UNIT.shape
    expected = BESIDE_EMBEDDING * VALUES_FACTOR * (np.square(candidate - UNIT).mean(axis=0) / UNIT.var(axis=0)).mean()
    assert found["values"] == pytest.approx(expected)
    assert found["embedding"] > 0


def test_features_of_several_kinds_are_no_embedding() -> None:
    block = RNG.normal(size=(50, 40)) * 0.1
    assert described(block, channel_axes=(0,), linear=False).kind == "embedding"
    block[:, :4] *= 1000
    assert described(block, channel_axes=(0,), linear=False).kind == "values"


def test_padding_does_not_count_in_an_embedding() -> None:
    reference = RNG.normal(size=(6, 5, 32)) * 0.3
    mask = np.arange(5)[None] < np.array([5, 4, 3, 2, 1, 5])[:, None]
    candidate = np.where(mask[..., None], reference, RNG.normal(size=reference.shape) * 50)
    output = described(reference, weights=mask, channel_axes=(1,), linear=False)
    assert output.kind == "embedding"
    found = measured(output, reference, candidate, mask)
    assert "embedding" in found and all(value == 0 for value in found.values())


def test_batches_are_one_output() -> None:
    """However the samples are cut."""
    whole = described(UNSURE, channel_axes=(0,))
    parts = described(*np.split(UNSURE, 8), channel_axes=(0,))
    other = UNSURE + 0.1
    assert parts.kind == whole.kind
    assert measured(parts, UNSURE, other) == pytest.approx(measured(whole, UNSURE, other))
