"""What a tensor was before, after several rewrites: against the arrays that the rewrites themselves would make."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcomp.graph.provenance import NEW, Origin, since

VALUES = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
SCALE = np.array([2.0, 0.5, 4.0, 1.0, 8.0]).reshape(1, 5, 1)
SCALED = Origin("t", 3, factor=SCALE)
CUT = Origin("t", 3, {1: np.array([4, 0, 2, 1, 3])})
WIDENED = Origin("t", 3, {1: np.array([0, 1, 2, 3, NEW])})
BOTH = Origin("t", 3, {1: np.array([3, 3, 0, NEW, 1])}, SCALE)


@pytest.mark.parametrize(("first", "second"), list(itertools.product((SCALED, CUT, WIDENED, BOTH), repeat=2)))
def test_two_rewrites_in_turn_are_one(first: Origin, second: Origin) -> None:
    step = first.as_now(VALUES)
    assert step is not None
    expected = second.as_now(step)
    both = since({"t": second}, {"t": first})["t"].as_now(VALUES)
    assert expected is not None and both is not None
    np.testing.assert_array_equal(both, expected)  # factors are powers of two


def test_by_hand() -> None:
    origin = Origin("t", 2, {1: np.array([2, NEW])}, np.array([[10.0, 1.0]]))
    np.testing.assert_array_equal(origin.as_now(np.array([[1.0, 2.0, 3.0]])), [[30.0, 0.0]])


@pytest.mark.parametrize("origin", [SCALED, CUT, WIDENED, BOTH])
@pytest.mark.parametrize("axis", [1, -2])
def test_values_for_each_channel_go_as_the_tensor_does(origin: Origin, axis: int) -> None:
    means = VALUES.mean(axis=(0, 2))
    now = origin.as_now(np.broadcast_to(means.reshape(1, 5, 1), VALUES.shape))
    assert now is not None
    np.testing.assert_array_equal(origin.channels_as_now(means, axis), now[0, :, 0])


def test_what_cannot_be_compared_says_so() -> None:
    assert Origin(None).as_now(VALUES) is None
    assert SCALED.as_now(VALUES[0]) is None  # of another rank
    assert SCALED.channels_as_now(VALUES[:, 0, 0], 0) is None  # the factor differs along axis 1
    assert since({"t": Origin(None)}, {"t": SCALED})["t"].as_now(VALUES) is None
    assert since({"t": SCALED}, {"t": Origin(None)})["t"].as_now(VALUES) is None


def test_tensors_that_only_the_older_rewrite_touched_stay_known() -> None:
    found = since({"u": CUT}, {"t": SCALED})
    assert found.keys() == {"t", "u"} and found["t"] is SCALED
