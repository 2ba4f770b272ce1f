"""What rows of numbers look like: class scores, a picture, probabilities that stand alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from onnxcomp.numerics.metrics.arrays import Array, Floats, by_channel
from onnxcomp.numerics.metrics.class_scores import Form, log_softmax

SUM_TOLERANCE = 1e-2  # float16 softmax over a thousand classes
PEAKED_ENTROPY_SHARE = 0.6  # of log C; logits measured: 0.003 to 0.26
FLAT_ENTROPY_SHARE = 0.95  # mean-pooled sentence embeddings have 0.99, unsure classifiers 0.5 to 0.9
MAX_WINNER_SHARE = 0.95
MAX_LOGIT_SPREAD = 60.0
MIN_EMBEDDING_SIZE = 32
MAX_IMAGE_CHANNELS = 4
IMAGE_CORRELATION = 0.5  # between the channels of a picture; class scores go against each other
IMAGE_SPREAD = 16.0  # of a picture in numbers of 0 to 255, at least
SAMPLED_ROWS = 4096
UNDECIDED = 0.1  # further from both 0 and 1 a chance is open
DECIDED_SHARE = 0.25
RARE_CHANCE = 0.2  # what a channel of chances reaches at least


class Seen(NamedTuple):
    """The original's output in one batch: (samples, ...), the weights (samples, positions) of its positions or None,
    an input of the same shape that it may be a correction of, or None, and how much each position says."""

    block: Array
    weights: Array | None = None
    base: Array | None = None
    salience: Floats | None = None


Batches = Callable[[], Iterable[Seen]]


class ClassLook(NamedTuple):
    """form: of the scores. sure: whether the softmax is peaked, so that these are class scores and nothing else."""

    form: Form
    sure: bool


class _Rows(NamedTuple):
    """form: "logits" for all that is no distribution. Of rows (n,): winners, entropy of the softmax as a share of the
    largest possible, spread from the least to the largest value."""

    form: Form
    winners: Array
    entropy: Floats
    spread: Floats


def class_axes(rank: int) -> Sequence[int]:
    """Where classes may lie, without the sample axis: last, or first as in maps (samples, C, H, W)."""
    if rank < 2:
        return ()
    return {2: (0,), 3: (1, 0)}.get(rank, (0, rank - 2))


def class_look(batches: Batches, axis: int, *, forced: bool = False, linear: bool = True) -> ClassLook | None:
    """How the rows along ``axis`` can be read as class scores, or None.

    forced: the user says so; then scores of any kind are logits. Features are often first in (samples, F, positions),
    so there only distributions are classes. linear: whether a linear operator ends in them, as class scores do: many
    flat features that do not are vectors.
    """
    looks = [_rows_look(each.block, axis) for each in batches()]
    forms = {each.form for each in looks}
    if forms in ({"probability"}, {"log"}):
        return ClassLook(forms.pop(), True)
    if forced:
        return ClassLook("logits", True)
    entropies, spreads = (
        np.concatenate(parts) for parts in zip(*((each.entropy, each.spread) for each in looks), strict=True)
    )
    ranks = {each.block.ndim for each in batches()}
    if forms != {"logits"} or not entropies.size or not np.isfinite(entropies).all() or (ranks == {3} and axis != 1):
        return None
    # Coordinates in pixels have a peaked softmax too; what trained models give as logits spans less.
    if np.median(spreads) >= MAX_LOGIT_SPREAD or not _winner_varies([each.winners for each in looks]):
        return None
    if entropies.mean() >= FLAT_ENTROPY_SHARE or is_picture(batches, axis):
        return None
    is_peaked = bool(entropies.mean() < PEAKED_ENTROPY_SHARE)
    is_wide = any(each.block.shape[1 + axis] >= MIN_EMBEDDING_SIZE for each in batches())
    return None if is_wide and not is_peaked and not linear else ClassLook("logits", is_peaked)


def is_picture(batches: Batches, axis: int) -> bool:
    """Whether a map's few channels are colours: they go together, over a wide range of numbers."""
    blocks = [each.block for each in batches()]
    if any(block.ndim != 4 or block.shape[1 + axis] > MAX_IMAGE_CHANNELS for block in blocks):
        return False
    rows = np.concatenate([_sampled(block, axis) for block in blocks])
    if len(rows) < 2 or np.ptp(rows) < IMAGE_SPREAD or not rows.std(axis=0).all():
        return False
    together = np.corrcoef(rows.T)
    return bool((together.sum() - len(together)) / (len(together) * (len(together) - 1)) > IMAGE_CORRELATION)


def is_unit_interval(block: Array) -> bool:
    """Whether all is from 0 to 1; of uint8, which is for pictures, never."""
    return block.dtype.kind != "u" and bool(block.size == 0 or (block.min() >= 0 and block.max() <= 1))


def are_chances(batches: Batches) -> bool:
    """Whether all elements are chances of something: from 0 to 1, most of them decided, and not on one side only.

    Coordinates as shares of a picture lie in the middle, concentrations and other small numbers below.
    """
    blocks = [each.block for each in batches()]
    if not all(map(is_unit_interval, blocks)):
        return False
    decided = sum(int(((block < UNDECIDED) | (block > 1 - UNDECIDED)).sum()) for block in blocks)
    highest = max((float(block.max()) for block in blocks if block.size), default=0.0)
    return highest >= 0.5 and decided >= DECIDED_SHARE * sum(block.size for block in blocks)


def unit_channels(batches: Batches, axis: int) -> Array:
    """(channels,) of bool: those along ``axis`` whose values are chances, as above; of rare things, too."""
    lows, highs, decided, count = [], [], 0, 0
    for each in batches():
        values = by_channel(each.block, axis)
        lows.append(values.min(axis=(0, 1)))
        highs.append(values.max(axis=(0, 1)))
        decided = decided + ((values < UNDECIDED) | (values > 1 - UNDECIDED)).sum(axis=(0, 1))
        count += values.shape[0] * values.shape[1]
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    are_within = (low >= 0) & (high <= 1) & (high > low) & (high >= RARE_CHANCE)
    return np.asarray(are_within & (decided >= DECIDED_SHARE * count))


def _rows_look(block: Array, axis: int) -> _Rows:
    """How one batch looks, from at most 4,096 rows; its entropies are infinite where no softmax can be made."""
    rows = _sampled(block, axis)
    winners = rows.argmax(axis=1) if rows.size else np.zeros(0, int)
    if rows.shape[1] < 2 or not np.isfinite(rows).all():
        return _Rows("logits", winners, np.array([np.inf]), np.array([np.inf]))
    spread = rows.max(axis=1) - rows.min(axis=1)
    if rows.min(initial=0) >= -1e-6 and np.abs(rows.sum(axis=1) - 1).max(initial=0) < SUM_TOLERANCE:
        return _Rows("probability", winners, np.zeros(len(rows)), spread)
    if rows.max(initial=-1) <= 1e-6 and np.abs(np.exp(rows).sum(axis=1) - 1).max(initial=0) < SUM_TOLERANCE:
        return _Rows("log", winners, np.zeros(len(rows)), spread)
    logs = log_softmax(rows)
    entropy = -(np.exp(logs) * logs).sum(axis=1) / np.log(rows.shape[1])
    return _Rows("logits", winners, entropy, spread)


def _sampled(block: Array, axis: int) -> Floats:
    """(rows, classes) in float64: at most 4,096 of the rows along ``axis``, evenly."""
    rows = by_channel(block, axis)
    rows = rows.reshape(int(np.prod(rows.shape[:-1])), rows.shape[-1])
    return rows[:: max(1, len(rows) // SAMPLED_ROWS)].astype(np.float64)


def _winner_varies(winners: Sequence[Array]) -> bool:
    counts = np.unique(np.concatenate(list(winners)), return_counts=True)[1]
    return bool(counts.max(initial=1) <= MAX_WINNER_SHARE * counts.sum())
