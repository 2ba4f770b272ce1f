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

    values: (n, channels, *spatial). At most about ``most_rows`` positions, evenly spread, are taken.
    """
    seen = _windows(values, window)
    rank = len(window.kernel)
    thinned = seen[(slice(None), slice(None), *_strides(seen.shape, rank, most_rows))]
    samples, channels = thinned.shape[:2]
    places = thinned.shape[2 : 2 + rank]
    split = thinned.reshape(samples, groups, channels // groups, math.prod(places), math.prod(window.kernel))
    rows: Array = split.transpose(1, 0, 3, 2, 4).reshape(groups, samples * math.prod(places), -1)
    return rows


def _windows(values: Array, window: Window) -> Array:
    """(n, channels, *places, *kernel), a view of the padded input."""
    strides = window.strides
    if window.transposed:
        # The output is a plain convolution of the spread input with the kernel turned around.
        values = _spread(values, strides)
        reach = [(size - 1) * step for size, step in zip(window.kernel, window.dilations, strict=True)]
        pads = [(r - low, r - high) for r, (low, high) in zip(reach, window.pads, strict=True)]
        strides = (1,) * len(strides)
        values = _cropped(values, pads)
    else:
        pads = list(window.pads)
    padded = np.pad(values, [(0, 0), (0, 0), *((max(0, low), max(0, high)) for low, high in pads)])
    axes = tuple(range(2, padded.ndim))
    extent = [(size - 1) * step + 1 for size, step in zip(window.kernel, window.dilations, strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=axes)
    steps = [slice(None, None, step) for step in strides]
    taps = [slice(None, None, -step if window.transposed else step) for step in window.dilations]
    view: Array = seen[(slice(None), slice(None), *steps, *taps)]
    return view


def _spread(values: Array, strides: Sequence[int]) -> Array:
    """The values with stride - 1 zeros between neighbours."""
    shape = [(size - 1) * step + 1 for size, step in zip(values.shape[2:], strides, strict=True)]
    spread = np.zeros((*values.shape[:2], *shape), values.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, step) for step in strides))] = values
    return spread


def _cropped(values: Array, pads: Sequence[tuple[int, int]]) -> Array:
    """The values without those that negative padding takes away."""
    ends = zip(values.shape[2:], pads, strict=True)
    return values[(slice(None), slice(None), *(slice(max(0, -low), size + min(0, high)) for size, (low, high) in ends))]


def _strides(shape: tuple[int, ...], rank: int, most_rows: int) -> list[slice]:
    """Slices of the places that leave about ``most_rows`` of them, counted over all samples."""
    places = shape[2 : 2 + rank]
    steps = [1] * rank
    for axis in itertools.cycle(range(rank)):
        left = math.prod(math.ceil(size / step) for size, step in zip(places, steps, strict=True))
        if left * shape[0] <= most_rows or all(step >= size for step, size in zip(steps, places, strict=True)):
            break
        steps[axis] += 1
    return [slice((step - 1) // 2, None, step) if size > step else slice(size // 2, size // 2 + 1)
            for step, size in zip(steps, places, strict=True)]  # fmt: skip
