"""The columns under a kernel, against a loop over places and taps."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from onnxcomp.numerics.arrays.im2col import Window, unfold

ALL = 10**6

PLAIN = [
    Window((3,), (1,), (1,), ((0, 0),)),
    Window((2, 3), (1, 2), (1, 1), ((1, 0), (0, 2))),
    Window((3, 2), (2, 1), (2, 3), ((2, 1), (1, 1))),
    Window((1, 1), (2, 2), (1, 1), ((0, 0), (0, 0))),
    Window((2, 1, 2), (1, 2, 1), (1, 1, 2), ((0, 1), (0, 0), (1, 0))),
]
TRANSPOSED = [
    Window((3,), (2,), (1,), ((0, 0),), True),
    Window((2, 3), (2, 1), (1, 2), ((1, 0), (0, 1)), True),
    Window((2, 2), (3, 1), (2, 1), ((0, 2), (1, 0)), True),
    Window((2, 1), (1, 2), (1, 1), ((2, 1), (0, 1)), True),  # more padding than the kernel reaches: results are cut
]


def rows_by_loop(x: np.ndarray, window: Window, groups: int) -> np.ndarray:
    """(groups, n * places, channels/groups * taps): each tap's value is looked up by its own index, zero outside."""
    size, rank = x.shape[2:], len(window.kernel)
    reach = [(k - 1) * d for k, d in zip(window.kernel, window.dilations, strict=True)]
    if window.transposed:
        pairs = zip(size, window.strides, reach, window.pads, strict=True)
        outputs = [(n - 1) * s + r + 1 - sum(pads) for n, s, r, pads in pairs]
    else:
        pairs = zip(size, window.strides, reach, window.pads, strict=True)
        outputs = [(n + sum(pads) - r - 1) // s + 1 for n, s, r, pads in pairs]

    def source(place: tuple[int, ...], tap: tuple[int, ...]) -> tuple[int, ...] | None:
        found = []
        for axis in range(rank):
            low, step = window.pads[axis][0], window.strides[axis]
            if window.transposed:
                at, rest = divmod(place[axis] + low - tap[axis] * window.dilations[axis], step)
            else:
                at, rest = place[axis] * step + tap[axis] * window.dilations[axis] - low, 0
            if rest or not 0 <= at < size[axis]:
                return None
            found.append(at)
        return tuple(found)

    each = x.shape[1] // groups
    rows = []
    for group, sample in itertools.product(range(groups), range(len(x))):
        for place in np.ndindex(*outputs):
            columns = itertools.product(range(group * each, (group + 1) * each), np.ndindex(*window.kernel))
            row = [0.0 if (at := source(place, tap)) is None else x[(sample, channel, *at)] for channel, tap in columns]
            rows.append(row)
    return np.array(rows, x.dtype).reshape(groups, len(x) * math.prod(outputs), -1)


@pytest.mark.parametrize("window", [*PLAIN, *TRANSPOSED], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_rows_are_what_a_loop_finds_under_the_kernel(window: Window, groups: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 6, 4)[: 2 + len(window.kernel)]).astype(np.float32)
    assert np.array_equal(unfold(x, window, groups, most_rows=ALL), rows_by_loop(x, window, groups))


@pytest.mark.parametrize("most", [1, 7, 50, 200, 700])
def test_thinning_takes_about_as_many_rows_as_asked_from_all_over(most: int) -> None:
    window = Window((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
    x = np.broadcast_to(np.arange(18 * 20, dtype=np.float32).reshape(1, 1, 18, 20), (2, 1, 18, 20))
    rows = unfold(x, window, 1, most_rows=most)[0, :, 0]
    assert max(2, most / 4) <= len(rows) <= max(2, most)  # every sample gives one at least
    places = np.unravel_index(rows.astype(int), (18, 20))
    assert np.allclose([np.mean(places[0]), np.mean(places[1])], [8.5, 9.5], atol=2)


def test_rows_that_are_thinned_are_rows_of_the_whole() -> None:
    window = PLAIN[2]
    x = np.random.default_rng(0).standard_normal((3, 2, 9, 9)).astype(np.float32)
    whole = {row.tobytes() for row in unfold(x, window, 1, most_rows=ALL)[0]}
    some = unfold(x, window, 1, most_rows=20)[0]
    assert len(some) <= 20
    assert {row.tobytes() for row in some} <= whole
