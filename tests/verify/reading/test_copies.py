"""onnxcomp.verify.reading.copies: which elements of an output are an input's, told by their bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from onnxcomp.verify.reading.copies import MOST_SHIFTS, Copy, find_copies

RNG = np.random.default_rng(5)
Step = tuple[dict[str, Any], dict[str, np.ndarray]]


def drawn(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def grown(past: np.ndarray, rows: int, axis: int, *, at_end: bool = True) -> np.ndarray:
    new = drawn(*(rows if each == axis else size for each, size in enumerate(past.shape)))
    return np.concatenate([past, new] if at_end else [new, past], axis=axis)


def steps(pasts: Sequence[np.ndarray], rows: int, axis: int, *, at_end: bool = True) -> list[Step]:
    return [({"past": past}, {"present": grown(past, rows, axis, at_end=at_end)}) for past in pasts]


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_cache_grows_at_either_end_of_any_axis(axis: int, at_end: bool) -> None:
    found = find_copies(steps([drawn(2, 3, 4), drawn(2, 3, 4)], 1, axis, at_end=at_end))
    assert found == {"present": Copy("past", axis, None, at_end)}


@pytest.mark.parametrize("at_end", [True, False])
def test_new_rows_and_kept_ones_are_told_apart(at_end: bool) -> None:
    past = drawn(2, 3, 4)
    present = grown(past, 2, 1, at_end=at_end)
    copy = find_copies([({"past": past}, {"present": present})])["present"]
    new = present[:, 3:] if at_end else present[:, :2]
    np.testing.assert_array_equal(copy.fresh(present, past.shape), new)
    np.testing.assert_array_equal(copy.kept(present, past.shape), past)


def test_caches_of_several_lengths_grow_by_what_they_are_longer() -> None:
    batches = [*steps([drawn(2, 3, 4)], 1, 1), *steps([drawn(2, 7, 4)], 5, 1)]
    copy = find_copies(batches)["present"]
    assert copy == Copy("past", 1, None)
    assert [copy.fresh(out["present"], feeds["past"].shape).shape[1] for feeds, out in batches] == [1, 5]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_window_slides_by_its_new_rows(rows: int) -> None:
    states = [drawn(2, 5, 3) for _ in range(3)]
    batches = [({"state": each}, {"next": grown(each, rows, 1)[:, rows:]}) for each in states]
    copy = find_copies(batches)["next"]
    assert copy == Copy("state", 1, rows)
    feeds, out = batches[0]
    np.testing.assert_array_equal(copy.fresh(out["next"], feeds["state"].shape), out["next"][:, 5 - rows :])
    np.testing.assert_array_equal(copy.kept(out["next"], feeds["state"].shape), feeds["state"][:, rows:])


def test_windows_slide_no_further_than_is_looked_for() -> None:
    state = drawn(1, MOST_SHIFTS + 3)
    moved = [grown(state, rows, 1)[:, rows:] for rows in (MOST_SHIFTS - 1, MOST_SHIFTS + 1)]
    assert [bool(find_copies([({"state": state}, {"next": each})])) for each in moved] == [True, False]


def test_what_is_passed_on_is_a_copy_throughout() -> None:
    batches = [({"x": each, "other": drawn(4, 3)}, {"y": each.copy()}) for each in (drawn(4, 3), drawn(2, 3))]
    assert find_copies(batches) == {"y": Copy("x", 0, 0)}


@pytest.mark.parametrize("value", [np.array([[True, False]]), np.array([["a", "b"]], object), np.array([[3, 4]])])
def test_copies_may_be_of_any_type(value: np.ndarray) -> None:
    assert find_copies([({"x": value}, {"y": value.copy()})]) == {"y": Copy("x", 0, 0)}


def test_each_output_has_its_own_source() -> None:
    key, value = drawn(2, 3, 4), drawn(2, 3, 4)
    outputs = {"k": grown(key, 1, 1), "v": grown(value, 1, 1), "y": drawn(2, 5)}
    assert find_copies([({"v0": value, "k0": key}, outputs)]) == {"k": Copy("k0", 1, None), "v": Copy("v0", 1, None)}


@pytest.mark.parametrize("number", [0.0, 1.0])
def test_states_of_one_number_are_no_copies(number: float) -> None:
    """A state that starts at zero, and stays there in a model that forgets it, tells nothing."""
    past = np.full((2, 3, 4), number, np.float32)
    assert find_copies(steps([past], 1, 1)) == {}
    assert find_copies([({"s": past}, {"t": past.copy()})]) == {}


@pytest.mark.parametrize("first", [0, 1])
def test_zero_states_beside_others_do_not_hide_a_copy(first: int) -> None:
    """The first step of a stream among later ones, in whichever order they come."""
    pasts = [np.zeros((2, 3, 4), np.float32), drawn(2, 3, 4)]
    batches = steps([pasts[first], pasts[1 - first]], 1, 1)
    assert find_copies(batches) == {"present": Copy("past", 1, None)}
    slid = [({"s": each}, {"t": grown(each, 1, 1)[:, 1:]}) for each in (pasts[first], pasts[1 - first])]
    assert find_copies(slid) == {"t": Copy("s", 1, 1)}


@pytest.mark.parametrize("first", [0, 1])
def test_empty_caches_beside_others_do_not_hide_a_copy(first: int) -> None:
    """A prompt is read with a cache of no rows."""
    pasts = [drawn(2, 0, 4), drawn(2, 3, 4)]
    batches = steps([pasts[first], pasts[1 - first]], 2, 1)
    copy = find_copies(batches)["present"]
    assert copy == Copy("past", 1, None)
    for feeds, outputs in batches:
        assert copy.fresh(outputs["present"], feeds["past"].shape).shape == (2, 2, 4)


def test_empty_caches_alone_are_no_copies() -> None:
    assert find_copies(steps([drawn(2, 0, 4)], 2, 1)) == {}


def test_a_copy_holds_in_all_batches() -> None:
    kept, other = steps([drawn(2, 3, 4)], 1, 1), steps([drawn(2, 3, 4)], 1, 1)
    other[0][1]["present"][0, 0, 0] += 1e-6
    assert find_copies(kept + other) == {}


@pytest.mark.parametrize(
    "present",
    [
        lambda past: grown(past, 1, 1).astype(np.float64),
        lambda past: grown(past, 1, 1)[None],
        lambda past: grown(grown(past, 1, 1), 1, 2),
        lambda past: grown(past, 1, 1) * np.float32(1.0001),
        lambda past: past[:, 1:],
    ],
)
def test_other_types_shapes_and_bits_are_no_copies(present: Any) -> None:
    past = drawn(2, 3, 4)
    assert find_copies([({"past": past}, {"present": present(past)})]) == {}


def test_nothing_has_no_copies() -> None:
    assert find_copies([]) == {}
    assert find_copies([({"seq": [drawn(2)], "x": drawn(1)}, {"y": np.zeros(()), "e": drawn(0, 3)})]) == {}
