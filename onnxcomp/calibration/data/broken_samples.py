"""Samples that say nothing because something is wrong with them: NaN or infinity in, NaN out.

A model may read such values (imputers read NaN, masks are minus infinity): what comes out of it decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.data.samples import CHUNK_BYTES, taken
from onnxcomp.calibration.data.sources import LABELS
from onnxcomp.errors import CalibrationError
from onnxcomp.runtime import Feeds, Value

Rows = NDArray[np.int64]
Run = Callable[[Feeds], Mapping[str, Value]]
FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def without_broken(data: CalibrationData, run: Run) -> CalibrationData:
    """The data without samples that hold NaN or infinity and make an output NaN, with a note that says how many.

    run: of the original. Of a fixed batch all samples go. Steps of sequences stay where they are, and the note alone is
    added. Raises CalibrationError where no sample is left.
    """
    suspects = _run_together(data, np.fromiter(_not_finite(data), np.int64))
    broken = _that_break(data, suspects, run) if suspects else []
    if not broken:
        return data
    rows = np.concatenate(broken)
    what = "hold NaN or infinity" if len(broken[0]) == 1 else "lie in batches with NaN or infinity"
    count = f"{len(rows):,} of {data.sample_count:,} samples {what}, and the model's outputs are NaN there"
    if len(rows) == data.sample_count:
        raise CalibrationError(f"calibration data: {data.source}: {count}")
    if data.are_sequences:
        return replace(data, notes=(*data.notes, count))
    return replace(data, order=np.delete(data.order, rows, axis=0), notes=(*data.notes, f"{count}: left out"))


def _run_together(data: CalibrationData, suspects: Rows) -> list[Rows]:
    """Where in the order the samples lie that run together with a suspect: itself, or those of its fixed batch."""
    found: list[Rows] = []
    for number, group in enumerate(data.groups):
        own = np.flatnonzero(data.order[:, 0] == number)
        found += [each for each in own.reshape(-1, group.cut.exact or 1) if np.isin(each, suspects).any()]
    return found


def _not_finite(data: CalibrationData) -> Iterator[int]:
    """Where in the order the samples lie whose floats are not all finite."""
    for number, group in enumerate(data.groups):
        rows = np.flatnonzero(data.order[:, 0] == number)
        values = group.load()
        is_broken = np.zeros(len(rows), bool)
        for name, value in values.items():
            if name == LABELS or getattr(value, "dtype", None) not in FLOATS:
                continue
            if name not in group.cut.axes:
                is_broken |= not np.isfinite(value).all()
                continue
            size = max(1, CHUNK_BYTES // max(1, value.nbytes // max(group.cut.count, 1)))
            for start in range(0, len(rows), size):
                chosen = data.order[rows[start : start + size], 1]
                axis = group.cut.axes[name]
                some = np.moveaxis(taken(value, chosen, axis), axis, 0).reshape(len(chosen), -1)
                is_broken[start : start + size] |= ~np.isfinite(some).all(axis=1)
        yield from rows[is_broken]


def _that_break(data: CalibrationData, parts: list[Rows], run: Run) -> list[Rows]:
    """Those of these parts of the order on which an output of the model is NaN, found by halves."""
    some = replace(data, order=data.order[np.concatenate(parts)])
    if not any(_has_nan(run(feeds)) for feeds in some.batches()):
        return []
    if len(parts) == 1:
        return parts
    half = len(parts) // 2
    return _that_break(data, parts[:half], run) + _that_break(data, parts[half:], run)


def _has_nan(outputs: Mapping[str, Value]) -> bool:
    return any(bool(np.isnan(each).any()) for each in outputs.values() if getattr(each, "dtype", None) in FLOATS)
