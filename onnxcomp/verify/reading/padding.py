"""Which positions are padding, found by what the model does and not by what an input is called.

A position is padding if changing what is fed there changes nothing at the others. Asked of inputs that mark positions
with two values (0 and 1, False and True, 0 and -10000), in both senses: torch's key_padding_mask is True where
transformers' attention_mask is 0. Where the answer is open, every position counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration import Batch, CalibrationData
from onnxcomp.calibration.statistics.watch import OpenSession
from onnxcomp.model import Model
from onnxcomp.runtime import Value
from onnxcomp.verify.reference import flatten

Array = NDArray[Any]
Run = Callable[[Mapping[str, Value]], Mapping[str, Array]]
TRIED_BATCHES = 3
SAME = 1e-4  # of the largest magnitude: what float rounding may differ by


@dataclass(frozen=True)
class Padding:
    """The input that marks positions, and the value that it has at padding."""

    source: str
    value: Any

    def weights(self, shapes: Mapping[str, Value], count: int) -> Array | None:
        """(samples, positions) of bool: those that count. A sample without any counts whole."""
        mask = _mask(shapes.get(self.source), count)
        if mask is None:
            return None
        counts = mask != self.value
        return np.where(counts.any(axis=1, keepdims=True), counts, True)


def padding_of(model: Model, data: CalibrationData, open_session: OpenSession) -> Padding | None:
    """The input of a model that marks padding, or None; once found the model remembers it."""
    known: Padding | None = model.memo.get(padding_of)
    if known is None:
        with model.opened_on(open_session) as session:
            known = find_padding(list(data.labelled_batches()), lambda feeds: flatten(session.run(feeds)))
        model.memo[padding_of] = known
    return known


def find_padding(batches: Sequence[Batch], run: Run) -> Padding | None:
    """The input that marks padding, or None. run: the original, feeds to arrays by name."""
    for name in _two_valued(batches):
        values = np.unique(np.concatenate([np.unique(np.asarray(each.feeds[name])) for each in batches]))
        if len(values) != 2:
            continue
        senses = [value for value in values if _is_padding(name, value, batches, run)]
        if len(senses) == 1:
            return Padding(name, senses[0])
    return None


def _two_valued(batches: Sequence[Batch]) -> Iterator[str]:
    """Inputs (samples, positions) beside others that have these positions, with at most two values in each batch."""
    for name in batches[0].feeds if batches else ():
        masks = [_mask(each.feeds.get(name), each.count) for each in batches]
        if all(mask is not None and len(np.unique(mask)) <= 2 for mask in masks) and _tokens(batches[0], name):
            yield name


def _mask(value: Value | None, count: int) -> Array | None:
    """(samples, positions) of an input that marks positions; dimensions of length 1 between do not count."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf" or value.ndim < 2 or value.shape[0] != count:
        return None
    positions = value.shape[-1]
    return value.reshape(count, positions) if value.size == count * positions and positions > 1 else None


def _tokens(batch: Batch, mask: str) -> dict[str, Array]:
    """The inputs that have something at each position that the mask marks, and are no masks themselves."""
    positions = np.shape(batch.feeds[mask])[-1]
    others = {name: each for name, each in batch.feeds.items() if name != mask and isinstance(each, np.ndarray)}
    marked = (batch.count, positions)
    return {name: each for name, each in others.items() if each.shape[:2] == marked and len(np.unique(each)) > 2}


def _is_padding(name: str, value: Any, batches: Sequence[Batch], run: Run) -> bool:
    """Whether what is fed where the mask has ``value`` changes nothing where it has the other one."""
    asked = 0
    for batch in batches:
        mask = _mask(batch.feeds[name], batch.count)
        assert mask is not None
        padded: Array = np.equal(mask, value)
        mixed = np.asarray(padded.any(axis=1) & ~padded.all(axis=1))
        if not mixed.any() or asked == TRIED_BATCHES:
            continue
        asked += 1
        changed = {each: _disturbed(array, padded) for each, array in _tokens(batch, name).items()}
        before, after = run(batch.feeds), run({**batch.feeds, **changed})
        if not all(_same(before[each], after[each], ~padded, mixed) for each in before):
            return False
    return asked > 0


def _disturbed(array: Array, padded: Array) -> Array:
    """With what stands at other places of the batch where ``padded``."""
    flat = array.reshape(padded.size, *array.shape[2:])
    moved = np.roll(flat, 1 + len(flat) // 3, axis=0).reshape(array.shape)
    return np.where(padded.reshape(*padded.shape, *(1,) * (array.ndim - 2)), moved, array)


def _same(before: Array, after: Array, counted: Array, mixed: Array) -> bool:
    """Whether two outputs are equal, up to rounding, at the positions that count; whole where they have none."""
    if before.shape != after.shape:
        return False
    if before.shape[:2] == counted.shape:
        before, after = before[counted], after[counted]
    elif before.shape[:1] == mixed.shape:
        before, after = before[mixed], after[mixed]
    if before.dtype.kind not in "fiub" or not before.size:
        return bool(np.array_equal(before, after))
    left, right = before.astype(np.float64), after.astype(np.float64)
    largest = np.abs(left[np.isfinite(left)]).max(initial=0)
    return bool(np.allclose(left, right, rtol=0, atol=SAME * largest, equal_nan=True))
