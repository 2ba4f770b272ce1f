"""Grey pictures of shapes before a sloping background, with strokes and specks; brightness in steps of 16."""

from __future__ import annotations

import numpy as np

from benchmarks.judge.catalogue import Array

SHAPES = ("disc", "square", "triangle", "cross", "ring")


def shape_mask(shape: str, x: float, y: float, radius: float, angle: float, size: int) -> Array:
    """Which pixels (size, size) bool the shape covers."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    across, down = (columns - x) / radius, (rows - y) / radius
    u = across * np.cos(angle) + down * np.sin(angle)
    v = down * np.cos(angle) - across * np.sin(angle)
    distance = np.hypot(u, v)
    if shape == "disc":
        return distance < 1
    if shape == "ring":
        return (distance < 1) & (distance > 0.6)
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) < 0.8
    if shape == "cross":
        return (np.minimum(np.abs(u), np.abs(v)) < 0.3) & (np.maximum(np.abs(u), np.abs(v)) < 1)
    return (v < 0.6) & (v > 1.8 * np.abs(u) - 1)


def background(rng: np.random.Generator, size: int, strokes: int) -> Array:
    """A slope of grey with thin strokes, (size, size) float in 0..255."""
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    slope = rng.normal(0, 30, 2)
    picture = rng.uniform(80, 170) + slope[0] * rows + slope[1] * columns
    for _ in range(strokes):
        angle, offset, half = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5), rng.uniform(0.1, 0.4)
        line = rows * np.cos(angle) + columns * np.sin(angle) - offset
        along = columns * np.cos(angle) - rows * np.sin(angle)
        picture += rng.normal(0, 30) * ((np.abs(line) < 0.02) & (np.abs(along - rng.uniform(-0.4, 0.4)) < half))
    return picture


def finish(rng: np.random.Generator, picture: Array, specks: float = 0.08, depth: float = 40) -> Array:
    """Specks on a share of the pixels, then uint8 in steps of 16, which the committed files compress well."""
    noise = rng.normal(0, depth, picture.shape) * (rng.random(picture.shape) < specks)
    return (np.clip((picture + noise) / 16, 0, 15).round() * 16).astype(np.uint8)


def contrast(rng: np.random.Generator, faint: float, strong: float) -> float:
    """How much brighter (or darker) than its background a shape is."""
    return float(rng.choice([-1, 1]) * rng.uniform(faint, strong))
