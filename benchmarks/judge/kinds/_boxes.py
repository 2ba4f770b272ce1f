"""Pictures with boxed shapes, and the detectors' figure: non-maximum suppression, matches, mean AP at overlap 0.5."""

from __future__ import annotations

import numpy as np

from benchmarks.judge.catalogue import Array
from benchmarks.judge.kinds._scenes import SHAPES, background, contrast, finish, shape_mask

SIZE, CLASSES, MOST = 32, 4, 3
KEPT = 12  # detections kept a picture


def pictures(seed: int, count: int) -> tuple[Array, Array]:
    """Pictures (count, 32, 32) uint8 and objects (count, 3, 5) int8: class or -1, then x0, y0, x1, y1 in pixels."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, SIZE, SIZE), np.uint8)
    objects = np.full((count, MOST, 5), -1, np.int8)
    for index in range(count):
        picture, taken = background(rng, SIZE, 2), np.zeros((SIZE, SIZE), bool)
        for slot in range(rng.integers(1, MOST + 1)):
            kind, radius = int(rng.integers(CLASSES)), rng.uniform(3.5, 8)
            x, y = rng.uniform(radius, SIZE - radius, 2)
            covered = shape_mask(SHAPES[kind], x, y, radius, rng.uniform(-0.4, 0.4), SIZE)
            if (covered & taken).any() or not covered.any():
                continue
            taken |= covered
            picture += contrast(rng, 25, 80) * covered
            down, across = np.nonzero(covered)
            objects[index, slot] = kind, across.min(), down.min(), across.max() + 1, down.max() + 1
        images[index] = finish(rng, picture)
    return images, objects


def overlap(one: Array, many: Array) -> Array:
    """Intersection over union of a box (4,) with boxes (n, 4), corners."""
    inner = np.minimum(one[2:], many[:, 2:]) - np.maximum(one[:2], many[:, :2])
    shared = np.prod(np.clip(inner, 0, None), axis=1)
    areas = np.prod(np.clip(many[:, 2:] - many[:, :2], 0, None), axis=1)
    return shared / np.maximum(np.prod(np.clip(one[2:] - one[:2], 0, None)) + areas - shared, 1e-9)


def detections(boxes: Array, scores: Array) -> list[tuple[int, float, Array]]:
    """Class, score and box of what non-maximum suppression leaves; boxes (P, 4) corners, scores (P, classes)."""
    found: list[tuple[int, float, Array]] = []
    for kind in range(scores.shape[1]):
        left = np.nonzero(scores[:, kind] > 0.02)[0]
        left = left[np.argsort(-scores[left, kind], kind="stable")]
        while left.size:
            best, left = left[0], left[1:]
            found.append((kind, float(scores[best, kind]), boxes[best]))
            left = left[overlap(boxes[best], boxes[left]) < 0.5]
    return sorted(found, key=lambda each: -each[1])[:KEPT]


def picture_units(boxes: Array, scores: Array, objects: Array) -> Array:
    """One row a picture: class, score and hit of 12 detections, then the number of objects of each class."""
    rows = np.zeros((len(objects), KEPT * 3 + CLASSES))
    rows[:, : KEPT * 3 : 3] = -1
    for index, (box, score, truth) in enumerate(zip(boxes, scores, objects, strict=True)):
        free = truth[truth[:, 0] >= 0].astype(np.float64)
        rows[index, KEPT * 3 :] = np.bincount(free[:, 0].astype(int), minlength=CLASSES)
        for slot, (kind, sure, found) in enumerate(detections(box, score)):
            fit = np.where(free[:, 0] == kind, overlap(found, free[:, 1:]), 0)
            hit = bool(fit.size) and fit.max() >= 0.5
            if hit:
                free = np.delete(free, fit.argmax(), axis=0)
            rows[index, slot * 3 : slot * 3 + 3] = kind, sure, hit
    return rows


def mean_ap(units: Array) -> float:
    """Mean over the classes of the area under precision by recall, x 100."""
    found = units[:, : KEPT * 3].reshape(-1, 3)
    totals = units[:, KEPT * 3 :].sum(axis=0)
    areas = []
    for kind in range(CLASSES):
        mine = found[found[:, 0] == kind]
        hits = mine[np.argsort(-mine[:, 1], kind="stable"), 2]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        areas.append((envelope * hits).sum() / max(totals[kind], 1))
    return 100 * float(np.mean(areas))
