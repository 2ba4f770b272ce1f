"""Characters of a 5 x 7 font, drawn askew in noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LEVELS = 8  # grey levels: few, so that the files stay small
ROWS = [
    "0E11131519110E", "040C040404040E", "0E11010204081F", "1F02040201110E", "02060A121F0202", "1F101E0101110E",
    "0608101E11110E", "1F010204080808", "0E11110E11110E", "0E11110F01020C", "0E11111F111111", "0E11101010110E",
    "1F10101E10101F", "1F10101E101010", "1111111F111111", "1010101010101F", "1E11111E101010",
]
FONT = np.array(
    [[[int(row[2 * y : 2 * y + 2], 16) >> (4 - x) & 1 for x in range(5)] for y in range(7)] for row in ROWS], np.float64
)


def drawn(rng: np.random.Generator, labels: Array, height: int, width: int, *, slant: float, scale: float) -> Array:
    """(len(labels), height, width) 0 to 1: each glyph turned, sheared, stretched and moved at random."""
    count = len(labels)
    angle = rng.normal(0, slant, (count, 1, 1))
    shear = rng.normal(0, slant, (count, 1, 1))
    size = scale * rng.uniform(0.85, 1.15, (2, count, 1, 1))
    move = rng.normal(0, 0.8, (2, count, 1, 1))
    y, x = np.mgrid[:height, :width].astype(np.float64)
    y, x = y - (height - 1) / 2 - move[0], x - (width - 1) / 2 - move[1]
    across = (np.cos(angle) * x + np.sin(angle) * y + shear * y) / size[0] + 2
    down = (np.cos(angle) * y - np.sin(angle) * x) / size[1] + 3
    return sampled(FONT[labels], down, across)


def sampled(pictures: Array, down: Array, across: Array) -> Array:
    """Bilinear values of (n, 7, 5) pictures at (n, height, width) places; zero outside."""
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1)))
    down = np.clip(down + 1, 0, padded.shape[1] - 1.001)
    across = np.clip(across + 1, 0, padded.shape[2] - 1.001)
    y, x = down.astype(int), across.astype(int)
    dy, dx = down - y, across - x
    n = np.arange(len(pictures))[:, None, None]
    top = padded[n, y, x] * (1 - dx) + padded[n, y, x + 1] * dx
    bottom = padded[n, y + 1, x] * (1 - dx) + padded[n, y + 1, x + 1] * dx
    return np.asarray(top * (1 - dy) + bottom * dy)


def in_levels(rng: np.random.Generator, pictures: Array, noise: float) -> Array:
    """Pictures with noise, in ``LEVELS`` grey levels, uint8."""
    noisy = pictures * rng.uniform(0.7, 1, (len(pictures), 1, 1)) + rng.normal(0, noise, pictures.shape)
    return np.asarray(np.clip(np.round(noisy * (LEVELS - 1)), 0, LEVELS - 1).astype(np.uint8))


def as_input(levels: Array) -> Array:
    """(n, 1, height, width) float32 for grey levels."""
    return np.asarray(levels[:, None].astype(np.float32) / (LEVELS - 1))
