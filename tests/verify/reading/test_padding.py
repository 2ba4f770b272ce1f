"""onnxcomp.verify.reading.padding: which positions are padding, told by what disturbing them changes."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from onnxcomp.calibration import Batch
from onnxcomp.verify.reading.padding import TRIED_BATCHES, Padding, find_padding

RNG = np.random.default_rng(5)
TABLE = RNG.normal(size=(50, 4))
REAL = np.arange(6)[None] < np.array([6, 4, 2, 1])[:, None]  # (samples, positions)
IDS = RNG.integers(0, 50, REAL.shape)
Feeds = Mapping[str, Any]


def batch(mask: np.ndarray, ids: np.ndarray = IDS, **others: np.ndarray) -> Batch:
    feeds = {"ids": ids, "mask": mask, **others}
    return Batch(feeds, None, len(ids), dict.fromkeys(feeds, 0))


def attending(is_real: Callable[[np.ndarray], np.ndarray]) -> Callable[[Feeds], dict[str, np.ndarray]]:
    """Each position: its own token plus the mean of all that are real."""

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        tokens = TABLE[feeds["ids"]]
        kept = is_real(feeds["mask"]).reshape(*tokens.shape[:2], 1)
        return {"y": tokens + (tokens * kept).sum(axis=1, keepdims=True) / np.maximum(kept.sum(axis=1), 1)[:, None]}

    return run


@pytest.mark.parametrize(
    ("mask", "is_real", "at_padding"),
    [
        (REAL.astype(np.int64), lambda m: m == 1, 0),  # transformers' attention_mask
        (~REAL, lambda m: ~m, True),  # torch's key_padding_mask
        (REAL.astype(np.float32), lambda m: m == 1, 0.0),
        (np.where(REAL, 0, -10000).astype(np.float32), lambda m: m == 0, -10000.0),  # added to the scores
        (np.where(REAL, 0, -np.inf).astype(np.float32), lambda m: m == 0, -np.inf),
        (REAL.astype(np.int64)[:, None, None, :], lambda m: m == 1, 0),  # (N, 1, 1, T)
        (np.where(REAL, 0, -10000).astype(np.float32)[:, None], lambda m: m == 0, -10000.0),
    ],
)
def test_padding_is_what_changes_nothing_elsewhere(
    mask: np.ndarray, is_real: Callable[[np.ndarray], np.ndarray], at_padding: Any
) -> None:
    padding = find_padding([batch(mask)], attending(is_real))
    assert padding == Padding("mask", at_padding)
    weights = padding.weights({"mask": mask}, len(mask))
    np.testing.assert_array_equal(weights, REAL)


def test_the_other_sense_of_a_mask_is_found_and_not_taken_for_granted() -> None:
    """The same zeros and ones, in a model that attends where the mask is 0."""
    mask = REAL.astype(np.int64)
    assert find_padding([batch(mask)], attending(lambda m: m == 1)) == Padding("mask", 0)
    assert find_padding([batch(mask)], attending(lambda m: m == 0)) == Padding("mask", 1)


def test_position_wise_models_have_no_padding_that_is_known() -> None:
    """Nothing reaches other positions, whatever the mask: both senses would do, so every position counts."""
    assert find_padding([batch(REAL.astype(np.int64))], lambda feeds: {"y": TABLE[feeds["ids"]]}) is None


def test_a_mask_that_is_not_used_marks_no_padding() -> None:
    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        tokens = TABLE[feeds["ids"]]
        return {"y": tokens + tokens.mean(axis=1, keepdims=True)}

    assert find_padding([batch(REAL.astype(np.int64))], run) is None


def test_padding_that_leaks_is_none() -> None:
    """A convolution after the mask: the last real position sees the first padded one."""

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        states = attending(lambda m: m == 1)(feeds)["y"]
        return {"y": states + np.roll(states, -1, axis=1)}

    assert find_padding([batch(REAL.astype(np.int64))], run) is None


@pytest.mark.parametrize("real", [0, 1])
def test_pooled_outputs_show_padding_in_whole_samples(real: int) -> None:
    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        kept = (feeds["mask"] == real)[..., None]
        return {"y": (TABLE[feeds["ids"]] * kept).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)}

    mask = np.where(REAL, real, 1 - real)
    assert find_padding([batch(mask)], run) == Padding("mask", 1 - real)


def test_every_output_must_be_the_same_elsewhere() -> None:
    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        return {**attending(lambda m: m == 1)(feeds), "mean": TABLE[feeds["ids"]].mean(axis=1)}

    assert find_padding([batch(REAL.astype(np.int64))], run) is None


def test_float_rounding_is_no_change() -> None:
    """Of a sum in float32 in another order."""

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        noise = np.random.default_rng(int(feeds["ids"].sum())).normal(size=(*REAL.shape, 4))
        return {"y": (attending(lambda m: m == 1)(feeds)["y"] + 1e-6 * noise).astype(np.float32)}

    assert find_padding([batch(REAL.astype(np.int64))], run) == Padding("mask", 0)


def test_features_may_be_padded_as_well_as_tokens() -> None:
    """(samples, positions, features) of sound beside a mask."""
    features = RNG.normal(size=(*REAL.shape, 3)).astype(np.float32)

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        kept = feeds["mask"][..., None]
        return {"y": feeds["ids"] + (feeds["ids"] * kept).sum(axis=1, keepdims=True)}

    assert find_padding([batch(REAL.astype(np.int64), ids=features)], run) == Padding("mask", 0)


@pytest.mark.parametrize(
    "mask",
    [
        np.ones_like(IDS),  # marks nothing
        np.arange(6)[None] % 3 + 0 * IDS,  # three values: positions, or token types
        REAL[:, :5].astype(np.int64),  # of other positions than the tokens
        REAL[0].astype(np.int64),  # not of samples
    ],
)
def test_other_inputs_are_no_masks(mask: np.ndarray) -> None:
    calls: list[Feeds] = []

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        calls.append(feeds)
        return {"y": TABLE[feeds["ids"]]}

    assert find_padding([batch(mask)], run) is None
    assert not calls


def test_a_batch_without_padding_does_not_hide_that_of_others() -> None:
    whole, part = batch(np.ones_like(IDS)), batch(REAL.astype(np.int64))
    for batches in ([whole, part], [part, whole]):
        assert find_padding(batches, attending(lambda m: m == 1)) == Padding("mask", 0)


def test_few_batches_are_tried() -> None:
    calls: list[Feeds] = []

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        calls.append(feeds)
        return attending(lambda m: m == 1)(feeds)

    find_padding([batch(REAL.astype(np.int64))] * 10, run)
    assert TRIED_BATCHES < len(calls) <= 2 * 2 * TRIED_BATCHES


def test_no_batches_have_no_padding() -> None:
    assert find_padding([], lambda feeds: {}) is None


def test_a_sample_of_padding_only_counts_whole() -> None:
    mask = np.array([[0, 0, 0], [1, 1, 0]])
    weights = Padding("mask", 0).weights({"mask": mask}, 2)
    assert weights is not None and weights.tolist() == [[True] * 3, [True, True, False]]


@pytest.mark.parametrize("feeds", [{}, {"mask": [1, 0]}, {"mask": np.ones((3, 4), int)}, {"mask": np.ones(2, int)}])
def test_a_batch_without_the_mask_has_no_weights(feeds: dict[str, Any]) -> None:
    assert Padding("mask", 0).weights(feeds, 2) is None
