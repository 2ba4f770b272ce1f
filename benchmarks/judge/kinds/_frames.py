"""Frames of a sound's spectrum, in which someone speaks now and then over a noise that swells and fades."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BANDS, STEP = 14, 8  # bands a frame, levels a unit
SOUNDS = 5  # what can be spoken


def made(rng: np.random.Generator, count: int, length: int, *, loud: float) -> tuple[Array, Array]:
    """Frames (count, length, BANDS) int8 and what is spoken (count, length) uint8, 0 for nothing."""
    shapes = np.random.default_rng(11).normal(0, 1, (SOUNDS + 1, BANDS))  # the same in every set
    shapes[0] = 0
    spoken = np.zeros((count, length), np.int64)
    speaks = rng.random(count) < 0.4
    sound = rng.integers(1, SOUNDS + 1, count)
    for place in range(length):
        speaks = np.where(rng.random(count) < np.where(speaks, 0.08, 0.06), ~speaks, speaks)
        sound = np.where(rng.random(count) < 0.22, rng.integers(1, SOUNDS + 1, count), sound)
        spoken[:, place] = sound * speaks
    time = np.arange(length)
    swell = np.sin(2 * np.pi * (time / rng.uniform(20, 60, (count, 1)) + rng.random((count, 1))))
    tilt = rng.normal(0, 0.6, (count, 1, BANDS))
    level = loud * rng.uniform(0.5, 1.3, (count, 1, 1))
    echo = _smoothed(shapes[spoken] * level)
    noise = 0.5 * swell[..., None] + tilt + rng.normal(0, 1, (count, length, BANDS))
    return np.clip(np.round((echo + noise) * STEP), -127, 127).astype(np.int8), spoken.astype(np.uint8)


def _smoothed(frames: Array) -> Array:
    """Each frame with a part of those before."""
    out = frames.copy()
    for place in range(1, frames.shape[1]):
        out[:, place] += 0.45 * out[:, place - 1]
    return np.asarray(out * 0.6)


def as_input(levels: Array) -> Array:
    """float32 frames."""
    return np.asarray(levels.astype(np.float32) / STEP)
