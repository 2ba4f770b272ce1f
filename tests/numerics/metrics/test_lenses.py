"""onnxcomp.numerics.metrics.lenses: each against a loop in float64 over its definition."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics import Pair
from onnxcomp.numerics.metrics.lenses import (
    BALANCE_FACTOR,
    BALANCED_FACTOR,
    CHANNEL_FACTOR,
    CLASS_FACTOR,
    MIN_ENTROPY,
    SAMPLE_FACTOR,
    TRIMMED_SHARE,
    VALUES_FACTOR,
    ClassBalance,
    ClassByClass,
    ClassDivergence,
    CosineShift,
    LabelChange,
    Lens,
    OfChannels,
    OwnScale,
    RelativeError,
    class_factor,
)
from tests.numerics.metrics.describing import softmax

RNG = np.random.default_rng(7)
# (samples, channels, positions): what follows is looked at along axis 0.
BLOCK = RNG.normal(size=(6, 3, 8)) * np.array([1.0, 10.0, 0.1])[:, None]
OTHER = BLOCK + 0.1 * RNG.normal(size=BLOCK.shape)
VARIANCE = np.array([1.0, 100.0, 0.01])
MASK = np.arange(8)[None] < np.array([8, 7, 5, 3, 2, 1])[:, None]


def through(lens: Lens, reference: np.ndarray, candidate: np.ndarray, weights: np.ndarray | None = None) -> dict:
    return dict(lens.summaries(lens.measure(Pair(reference, candidate, weights))))


def counted(mask: np.ndarray | None, sample: int, positions: int) -> list[int]:
    return [at for at in range(positions) if mask is None or mask[sample, at]]


@pytest.mark.parametrize("mask", [None, MASK])
def test_values_are_squared_errors_over_each_channels_variance(mask: np.ndarray | None) -> None:
    expected = []
    for sample in range(6):
        places = counted(mask, sample, 8)
        by_channel = [
            math.fsum((OTHER[sample, c, at] - BLOCK[sample, c, at]) ** 2 for at in places) / len(places) / VARIANCE[c]
            for c in range(3)
        ]
        expected.append(VALUES_FACTOR * sum(by_channel) / 3)
    got = through(RelativeError(0, VARIANCE, np.ones(3, bool)), BLOCK, OTHER, mask)
    np.testing.assert_allclose(got["values"], expected)


@pytest.mark.parametrize("mask", [None, MASK])
def test_the_worst_channel_counts_alone(mask: np.ndarray | None) -> None:
    """That which is worst over all samples, not each sample's own."""
    errors = np.zeros((6, 3))
    for sample in range(6):
        places = counted(mask, sample, 8)
        for c in range(3):
            errors[sample, c] = np.mean([(OTHER[sample, c, at] - BLOCK[sample, c, at]) ** 2 for at in places])
    errors /= VARIANCE
    got = through(RelativeError(0, VARIANCE, np.ones(3, bool)), BLOCK, OTHER, mask)
    np.testing.assert_allclose(got["worst channel"], CHANNEL_FACTOR * errors[:, 2])
    assert errors.mean(axis=0).argmax() == 2


def test_channels_last_are_the_same_as_channels_first() -> None:
    first = through(RelativeError(0, VARIANCE, np.ones(3, bool)), BLOCK, OTHER)
    last = through(RelativeError(1, VARIANCE, np.ones(3, bool)), np.moveaxis(BLOCK, 1, 2), np.moveaxis(OTHER, 1, 2))
    for name in first:
        np.testing.assert_allclose(first[name], last[name])


def test_one_channel_has_no_worst() -> None:
    assert set(through(RelativeError(None, np.ones(1), np.ones(1, bool)), BLOCK, OTHER)) == {"values"}


def test_a_factor_scales_the_worst_channel_alike() -> None:
    whole = through(RelativeError(0, VARIANCE, np.ones(3, bool)), BLOCK, OTHER)
    half = through(RelativeError(0, VARIANCE, np.ones(3, bool), factor=VALUES_FACTOR / 2), BLOCK, OTHER)
    for name in whole:
        np.testing.assert_allclose(half[name], whole[name] / 2)


def test_constant_channels_do_not_dilute_the_mean_and_count_where_they_fare_worst() -> None:
    varies = np.array([True, False, False])
    only_first = OTHER.copy()
    only_first[:, 1:] = BLOCK[:, 1:]
    got = through(RelativeError(0, VARIANCE, varies), BLOCK, only_first)
    alone = through(RelativeError(0, VARIANCE[:1], np.ones(1, bool)), BLOCK[:, :1], OTHER[:, :1])
    np.testing.assert_allclose(got["values"], alone["values"])
    broken = BLOCK.copy()
    broken[:, 2] += 5.0
    got = through(RelativeError(0, VARIANCE, varies), BLOCK, broken)
    assert (got["values"] == 0).all()
    np.testing.assert_allclose(got["worst channel"], CHANNEL_FACTOR * 25.0 / VARIANCE[2])


def test_all_channels_constant_all_count() -> None:
    got = through(RelativeError(0, VARIANCE, np.zeros(3, bool)), BLOCK, OTHER)
    all_vary = through(RelativeError(0, VARIANCE, np.ones(3, bool)), BLOCK, OTHER)
    np.testing.assert_allclose(got["values"], all_vary["values"])


@pytest.mark.parametrize("mask", [None, MASK])
def test_own_scale_is_the_error_over_the_samples_own_spread(mask: np.ndarray | None) -> None:
    expected = []
    for sample in range(6):
        places = counted(mask, sample, 8)
        lost = held = 0.0
        for c in range(3):
            own = [float(BLOCK[sample, c, at]) for at in places]
            mean = sum(own) / len(own)
            held += sum((each - mean) ** 2 for each in own) / VARIANCE[c]
            lost += sum((OTHER[sample, c, at] - BLOCK[sample, c, at]) ** 2 for at in places) / VARIANCE[c]
        expected.append(SAMPLE_FACTOR * lost / held if held else math.inf)
    got = OwnScale(0, VARIANCE).measure(Pair(BLOCK, OTHER, mask))
    np.testing.assert_allclose(got[:, 0], expected)


def test_own_scale_sees_what_is_lost_of_quiet_samples() -> None:
    """A hundredth as loud, and as much noise as signal: nothing beside the others' variance."""
    loud = RNG.normal(size=(20, 1, 50))
    loud[10:] /= 100
    noisy = loud.copy()
    noisy[10:] += RNG.normal(size=(10, 1, 50)) / 100
    scale = np.array([loud.var()])
    values = through(RelativeError(0, scale, np.ones(1, bool)), loud, noisy)["values"].mean() / VALUES_FACTOR
    samples = through(OwnScale(0, scale), loud, noisy)["samples"].mean() / SAMPLE_FACTOR
    assert values < 1e-3 and samples > 0.25


def test_own_scale_leaves_out_the_worst_tenth() -> None:
    values = RNG.permutation(np.arange(1.0, 41.0))
    values[values > 40 * (1 - TRIMMED_SHARE)] = np.inf
    left = OwnScale(0, np.ones(1)).summaries(values[:, None])["samples"]
    assert sorted(left) == list(range(1, 1 + round(40 * (1 - TRIMMED_SHARE))))


def test_few_samples_are_all_kept() -> None:
    values = np.arange(1.0, math.ceil(1 / TRIMMED_SHARE))[:, None]
    assert len(OwnScale(0, np.ones(1)).summaries(values)["samples"]) == len(values)


def test_silence_costs_nothing_until_something_is_heard() -> None:
    silent = np.zeros((2, 1, 8))
    heard = silent.copy()
    heard[1] += 1e-3
    assert OwnScale(0, np.ones(1)).measure(Pair(silent, heard, None))[:, 0].tolist() == [0.0, math.inf]


LOGITS = RNG.normal(size=(6, 8, 5)) * 3
SCORES = softmax(LOGITS)
CHANGED = softmax(LOGITS + 1e-3 * RNG.normal(size=LOGITS.shape))


def position_kl(sample: int, at: int) -> float:
    pairs = zip(SCORES[sample, at], CHANGED[sample, at], strict=True)
    return math.fsum(p * math.log(p / q) for p, q in pairs)


@pytest.mark.parametrize("mask", [None, MASK])
def test_classes_are_kl_over_positions_times_the_factor(mask: np.ndarray | None) -> None:
    expected = []
    for sample in range(6):
        places = counted(mask, sample, 8)
        expected.append(7.0 * math.fsum(position_kl(sample, at) for at in places) / len(places))
    got = through(ClassDivergence("probability", 1, 7.0), SCORES, CHANGED, mask)
    np.testing.assert_allclose(got["classes"], expected, rtol=5e-3)


def test_balance_weighs_each_position_by_its_winner() -> None:
    balance = np.array([0.5, 3.0, 1.0, 0.0, 2.0])
    expected = []
    for sample in range(6):
        weighed = [position_kl(sample, at) * balance[SCORES[sample, at].argmax()] for at in range(8)]
        expected.append(math.fsum(weighed) / 8)
    got = through(ClassDivergence("probability", 1, 1.0, balance), SCORES, CHANGED)
    np.testing.assert_allclose(got["balanced classes"], expected, rtol=5e-3)


def test_chances_that_stand_alone_win_from_a_half_on() -> None:
    p = np.array([[[0.2, 0.5], [0.49, 0.9]]])
    assert metrics.winners(p, "each", None).tolist() == [[0, 1, 0, 1]]
    lens = ClassDivergence("each", None, 1.0, np.array([0.0, 1.0]))
    q = np.array([[[0.3, 0.5], [0.3, 0.9]]])
    assert through(lens, p, q)["balanced probabilities"].tolist() == [0.0]


@pytest.mark.parametrize("entropy", [0.0, 1e-6, 0.02, 0.3, 0.5, 1.0, 5.0])
def test_the_class_factor_is_one_plus_inverse_entropy_within_bounds(entropy: float) -> None:
    held = entropy if entropy > MIN_ENTROPY else MIN_ENTROPY
    expected = 1 + 1 / held
    assert class_factor(entropy) == (expected if expected > CLASS_FACTOR else CLASS_FACTOR)


UNIT = RNG.normal(size=(12, 5, 16))
CENTRE = UNIT.reshape(-1, 16).mean(axis=0)
BASIS = np.array([(each - CENTRE) / np.linalg.norm(each - CENTRE) for each in UNIT.reshape(-1, 16)[:20]])
TOKENS = np.arange(5)[None] < np.array([5, 4, 3, 2, 1, 5] * 2)[:, None]


@pytest.mark.parametrize("mask", [None, TOKENS])
def test_embedding_is_the_shift_of_cosines(mask: np.ndarray | None) -> None:
    candidate = UNIT + RNG.normal(size=UNIT.shape) * 0.05
    expected = []
    for sample in range(12):
        shifts = []
        for at in counted(mask, sample, 5):
            right, moved = UNIT[sample, at] - CENTRE, candidate[sample, at] - CENTRE
            for left in BASIS:
                shifts.append((left @ moved - left @ right) / np.linalg.norm(right))
        expected.append(np.mean(np.square(shifts)))
    lens = CosineShift(CENTRE, BASIS)
    np.testing.assert_allclose(through(lens, UNIT, candidate, mask)["embedding"], expected)
    assert lens.power == 0.5


@pytest.mark.parametrize("change", [lambda x: x[..., ::-1], lambda x: 1.5 * x, lambda x: 0 * x])
def test_rotated_scaled_and_collapsed_embeddings_are_far_off(change: Callable[[np.ndarray], np.ndarray]) -> None:
    shift = through(CosineShift(CENTRE, BASIS), UNIT, change(UNIT))["embedding"]
    assert np.sqrt(shift.mean()) > 0.05


def test_a_vector_at_the_centre_has_no_direction_to_lose() -> None:
    lens = CosineShift(np.zeros(2), np.eye(2))
    assert through(lens, np.array([[0.0, 0.0], [1.0, 0.0]]), np.ones((2, 2)))["embedding"].tolist() == [0.0, 0.5]


def test_a_lens_on_some_channels_sees_no_others() -> None:
    chosen = np.array([0, 2])
    inner = RelativeError(0, VARIANCE[chosen], np.ones(2, bool))
    got = through(OfChannels(0, chosen, inner), BLOCK, OTHER, MASK)
    expected = through(inner, BLOCK[:, chosen], OTHER[:, chosen], MASK)
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_array_equal(got[name], expected[name])


@pytest.mark.parametrize("dtype", [np.int64, bool, object])
def test_labels_are_the_share_that_differs(dtype: type) -> None:
    reference, candidate = (np.array(each).astype(dtype) for each in ([[0, 1], [0, 1]], [[0, 1], [0, 0]]))
    assert through(LabelChange(), reference, candidate)["labels"].tolist() == [0, 0.5]


def test_no_labels_do_not_differ() -> None:
    assert through(LabelChange(), np.zeros((3, 0), int), np.zeros((3, 0), int))["labels"].tolist() == [0, 0, 0]


def test_masked_logits_do_not_disturb() -> None:
    z = np.where(RNG.uniform(size=LOGITS.shape) < 0.2, -np.inf, LOGITS)
    pair = Pair(*metrics.shared_finite(z, np.where(np.isfinite(z), z, 5.0)), None)
    np.testing.assert_allclose(ClassDivergence("logits", 1, 1.0).measure(pair), 0, atol=1e-12)


def test_class_by_class_weighs_what_is_mistaken_for_a_rare_class() -> None:
    """One position of the rare class; mistakes of many others for it count against that one."""
    p = np.array([[[0.9, 0.1]] * 9 + [[0.2, 0.8]]])
    q = p.copy()
    q[0, :9] = [0.8, 0.2]
    weights = np.array([0.5, 2.0])
    expected = 0.0
    for one, other in zip(p[0], q[0], strict=True):
        for name, (a, b) in enumerate(zip(one, other, strict=True)):
            expected += weights[name] * (a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))) / len(p[0])
    found = ClassByClass("probability", 1, weights).measure(Pair(p, q, None))
    assert found[0, 0] == pytest.approx(BALANCED_FACTOR / 2 * expected, rel=0.03)  # the skew leaves about 1%


def test_class_balance_is_the_shift_of_what_a_class_gets() -> None:
    """Errors that cancel over the samples do not count, those that go one way do."""
    p = np.array([[0.9, 0.1], [0.8, 0.2]])
    swung = p + np.array([[0.05, -0.05], [-0.05, 0.05]])
    moved = p + np.array([[0.03, -0.03], [0.03, -0.03]])
    lens = ClassBalance("probability", 0, p.mean(axis=0))
    assert lens.power == 2

    def shift(other: np.ndarray) -> float:
        return float(lens.summaries(lens.measure(Pair(p, other, None)))["class balance"].mean()) ** 2

    assert shift(swung) == pytest.approx(0, abs=1e-12)
    assert shift(moved) == pytest.approx(BALANCE_FACTOR * (0.03 / 0.15) ** 2)
