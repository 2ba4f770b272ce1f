"""The columns that a convolution's kernel is multiplied with, cut from its input (im2col).

x (n, channels, *spatial)  ->  rows (groups, positions, channels/groups * kernel)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Window:
    """A convolution's geometry, one number for each spatial axis.

    pads: (begin, end) of each axis. transposed: of a ConvTranspose, whose input is spread out by its strides.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    transposed: bool = False


def unfold(values: Array, window: Window, groups: int, *, most_rows: int) -> Array:
    """What the kernel meets at each output position: (groups, rows, channels/groups * kernel elements).

    values: (n, channels, *spatial). At most about ``most_rows`` positions, evenly spread, are taken. In memory the rows
    of one kernel element are neighbours.
    """
    if window.transposed:
        values = _spread(values, window.strides)
    samples, channels = values.shape[:2]
    met = _positions(values.shape, window, most_rows)
    counts = [each.shape[1] for each in met]
    if not math.prod(counts):
        return np.empty((groups, 0, channels // groups * math.prod(window.kernel)), values.dtype)
    for axis, each in enumerate(met, start=2):
        values, met[axis - 2] = _reached(values, axis, each)
    sample, channel, *sizes = values.strides
    start = values[(slice(None), slice(None), *(slice(each[0, 0], None) for each in met))]
    taps = [_step(each[:, 0]) * size for each, size in zip(met, sizes, strict=True)]
    places = [_step(each[0]) * size for each, size in zip(met, sizes, strict=True)]
    seen = np.lib.stride_tricks.as_strided(
        start,
        (groups, channels // groups, *window.kernel, samples, *counts),
        (channels // groups * channel, channel, *taps, sample, *places),
        writeable=False,
    )
    rows: Array = seen.reshape(groups, -1, samples * math.prod(counts)).swapaxes(1, 2)
    return rows


def _positions(shape: tuple[int, ...], window: Window, most_rows: int) -> list[Array]:
    """For each spatial axis where the kernel's elements meet the input: (elements, places), some beyond its ends."""
    reach = [(size - 1) * step for size, step in zip(window.kernel, window.dilations, strict=True)]
    strides, pads = window.strides, window.pads
    if window.transposed:
        # The output is a plain convolution of the spread input with the kernel turned around.
        strides = (1,) * len(strides)
        pads = tuple((far - low, far - high) for far, (low, high) in zip(reach, pads, strict=True))
    spans = zip(shape[2:], pads, reach, strides, strict=True)
    counts = [max(0, (size + low + high - far - 1) // step + 1) for size, (low, high), far, step in spans]
    places = [np.arange(each.start, each.stop, each.step) for each in _strides(counts, shape[0], most_rows)]
    taps = [np.arange(size)[:, None] * step for size, step in zip(window.kernel, window.dilations, strict=True)]
    taps = [each[::-1] for each in taps] if window.transposed else taps
    return [at * step + tap - low for at, step, tap, (low, _) in zip(places, strides, taps, pads, strict=True)]


def _reached(values: Array, axis: int, positions: Array) -> tuple[Array, Array]:
    """The values with zeros beyond the ends of an axis where they are met, and the positions (elements, places) in
    them. Where few are met, these alone."""
    size = values.shape[axis]
    if positions.size < size:
        taken = np.take(values, np.clip(positions, 0, size - 1).ravel(), axis=axis)
        outside = np.flatnonzero((positions < 0) | (positions >= size))
        if outside.size:
            np.moveaxis(taken, axis, 0)[outside] = 0
        return taken, np.arange(positions.size).reshape(positions.shape)
    low, high = max(0, -int(positions.min())), max(0, int(positions.max()) + 1 - size)
    if low or high:
        values = np.pad(values, [(low, high) if each == axis else (0, 0) for each in range(values.ndim)])
    return values, positions + low


def _step(positions: Array) -> int:
    """By how much equally spaced positions differ."""
    return int(positions[1] - positions[0]) if positions.size > 1 else 0


def _spread(values: Array, strides: Sequence[int]) -> Array:
    """The values with stride - 1 zeros between neighbours."""
    shape = [(size - 1) * step + 1 for size, step in zip(values.shape[2:], strides, strict=True)]
    spread = np.zeros((*values.shape[:2], *shape), values.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, step) for step in strides))] = values
    return spread


def _strides(places: Sequence[int], samples: int, most_rows: int) -> list[range]:
    """About ``most_rows`` of the places, counted over all samples: which along each axis."""
    rank = len(places)
    steps = [1] * rank
    for axis in itertools.cycle(range(rank)):
        left = math.prod(math.ceil(size / step) for size, step in zip(places, steps, strict=True))
        if left * samples <= most_rows or all(step >= size for step, size in zip(steps, places, strict=True)):
            break
        steps[axis] += 1
    return [range((step - 1) // 2, size, step) if size > step else range(size // 2, min(size, size // 2 + 1))
            for step, size in zip(steps, places, strict=True)]  # fmt: skip
