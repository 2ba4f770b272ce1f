"""Calibration data as sequences: what is (sequences, steps, ...) in a file becomes (samples, ...), step after step.

x (20, 50, 64) for [N, 64], axis 1      -> 1000 samples, 20 sequences of 50
folder/0.npz, 1.npz ... of (steps, 64)  -> each file a sequence
state of [2, batch, 128], left out      -> zeros
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.data.in_memory import Held, described
from onnxcomp.calibration.data.sample_axes import BATCH_SYMBOL, Cut, Dims, find_cut
from onnxcomp.calibration.data.sources import LABELS
from onnxcomp.errors import CalibrationError
from onnxcomp.runtime import Value, ValueSpec

Array = NDArray[Any]
NUMBERED = re.compile(r"\D*\d+")


@dataclass(frozen=True)
class Sequences:
    """Calibration data whose arrays have an axis more than the model's inputs: that of the steps.

    source: as ``CalibrationData.open`` takes it. axis: where the steps lie in every array that has them. Arrays without
    it hold for all steps of their sequence; those of states are what the sequences start with.
    """

    source: str | Path | Held
    axis: int = 1

    def __str__(self) -> str:
        return described(self.source)


@dataclass(frozen=True)
class Stepped:
    """Values whose sample axis counts steps. sequences, starts: as in ``Group``."""

    values: dict[str, Value]
    sequences: NDArray[np.int64] | None = None
    starts: tuple[str, ...] = ()


def is_numbered_folder(source: object) -> bool:
    """Whether it is a folder of .npz files that are told apart by a number."""
    if not isinstance(source, (str, Path)):
        return False
    folder = Path(source)
    files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    return bool(files) and all(NUMBERED.fullmatch(path.stem) for path in files)


def as_steps(
    values: Mapping[str, Value], inputs: Sequence[ValueSpec], *, axis: int | None, states: Collection[str], name: str
) -> Stepped:
    """The values with steps for samples, and zeros for the ``states`` that are missing.

    axis: of the steps, None where the arrays have none. name: of the file, for errors.
    Raises CalibrationError where no input has such an axis, or arrays differ in the number of steps.
    """
    found = Stepped(dict(values)) if axis is None else _flattened(values, inputs, axis, states, name)
    missing = [spec for spec in inputs if spec.name in states and spec.name not in values]
    if not missing:
        return found
    cut = find_cut(_shapes(found.values, inputs), inputs)
    zeros = {spec.name: _zeros(spec, inputs, cut) for spec in missing}
    return Stepped({**found.values, **zeros}, found.sequences, (*found.starts, *zeros))


def _flattened(
    values: Mapping[str, Value], inputs: Sequence[ValueSpec], axis: int, states: Collection[str], name: str
) -> Stepped:
    shapes = _shapes(values, inputs)
    ranks = {spec.name: len(spec.shape) for spec in inputs}
    stepped = {key: shape[axis] for key, shape in shapes.items() if len(shape) == ranks[key] + 1 and axis < len(shape)}
    if not stepped:
        raise CalibrationError(
            f"calibration data: {name}: sequence-axis {axis} must be an axis that an array has more than its input, "
            f"got {', '.join(f'{key} {list(shape)}' for key, shape in shapes.items())}"
        )
    if len(set(stepped.values())) > 1:
        counts = ", ".join(f"{key} {count}" for key, count in stepped.items())
        raise CalibrationError(f"calibration data: {name}: the numbers of steps along axis {axis} differ: {counts}")
    count = next(iter(stepped.values()))
    single = {key: (*s[:axis], *s[axis + 1 :]) if key in stepped else s for key, s in shapes.items()}
    cut = find_cut(single, inputs)
    flat = dict(values)
    for key, place in cut.axes.items():
        flat[key] = _joined(values[key], axis, place) if key in stepped else np.repeat(values[key], count, place)
    if not set(stepped) <= set(cut.axes):
        whole = ", ".join(sorted(set(stepped) - set(cut.axes)))
        raise CalibrationError(f"calibration data: {name}: {whole} has steps, but no axis that counts sequences")
    if LABELS in values and LABELS not in ranks:
        labels = np.asarray(values[LABELS])
        flat[LABELS] = labels.reshape(-1, *labels.shape[2:]) if labels.ndim > 1 else np.repeat(labels, count)
    starts = tuple(key for key in cut.axes if key in states and key not in stepped)
    return Stepped(flat, np.repeat(np.arange(cut.count + cut.dropped), count), starts)


def _joined(value: Array, axis: int, place: int) -> Array:
    """The steps along ``axis`` and the sequences along ``place`` (counted without ``axis``) as one axis of samples."""
    first = np.moveaxis(value, (place if place < axis else place + 1, axis), (0, 1))
    return np.moveaxis(first.reshape(-1, *first.shape[2:]), 0, place)


def _shapes(values: Mapping[str, Value], inputs: Sequence[ValueSpec]) -> dict[str, tuple[int, ...]]:
    arrays = {spec.name: values.get(spec.name) for spec in inputs if spec.is_tensor}
    return {name: value.shape for name, value in arrays.items() if isinstance(value, np.ndarray)}


def _zeros(spec: ValueSpec, inputs: Sequence[ValueSpec], cut: Cut) -> Array:
    """A state that starts at zero, for every sample; a cache without rows where its length is open."""
    dtype = spec.dtype or np.dtype(np.float32)
    place = _sample_axis(spec.shape, inputs, cut)
    shape = [dim if isinstance(dim, int) else 0 for dim in spec.shape]
    if place is not None:
        shape[place] = cut.count + cut.dropped
    return np.broadcast_to(np.zeros((), dtype), shape)


def _sample_axis(dims: Dims, inputs: Sequence[ValueSpec], cut: Cut) -> int | None:
    """The axis of a state that counts samples: named like that of another input or like a batch, else the one that can
    be (of recurrent networks the second, behind the layers)."""
    known = {spec.shape[cut.axes[spec.name]] for spec in inputs if spec.name in cut.axes and spec.shape}
    for axis, dim in enumerate(dims):
        if isinstance(dim, str) and (dim in known or BATCH_SYMBOL.fullmatch(dim)):
            return axis
    possible = [axis for axis, dim in enumerate(dims) if (dim == cut.exact if cut.exact else not isinstance(dim, int))]
    if len(dims) == 3 and 1 in possible and (cut.exact or isinstance(dims[0], int)):
        return 1
    return possible[0] if possible else None
