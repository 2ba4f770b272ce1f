"""The original's outputs, computed once and kept, with the samples brought to axis 0.

(T, batch, F) with ``batch`` the inputs' sample symbol -> (batch, T, F); what has no sample axis -> (1, ...).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration import Batch
from onnxcomp.runtime import Value, ValueSpec
from onnxcomp.runtime.isolated import read_values, write_values

Array = NDArray[Any]
IN_MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Layout:
    """What is known of one batch beside its outputs: how many samples, where they lie in each input, labels, and the
    shape of each array that was fed."""

    count: int
    axes: Mapping[str, int]
    labels: Array | None
    shapes: Mapping[str, tuple[int, ...]]


def layout_of(batch: Batch) -> Layout:
    """The batch without its feeds."""
    shapes = {name: value.shape for name, value in batch.feeds.items() if isinstance(value, np.ndarray)}
    return Layout(batch.count, batch.axes, batch.labels, shapes)


def flatten(outputs: Mapping[str, Value]) -> dict[str, Array]:
    """Arrays only: ``name[i]`` for items of sequences and values of maps, complex numbers as pairs.

    A sequence of maps with the same keys, as ZipMap makes of class scores, is one array (items, keys).
    """
    flat: dict[str, Array] = {}
    for name, value in outputs.items():
        if isinstance(value, np.ndarray):
            is_complex = value.dtype.kind == "c"
            flat[name] = np.stack([value.real, value.imag], axis=-1) if is_complex else value
        elif _is_table(value):
            flat[name] = np.array([list(item.values()) for item in value])
        elif isinstance(value, list):
            flat |= flatten({f"{name}[{i}]": item for i, item in enumerate(value)})
        elif isinstance(value, dict):
            flat |= flatten({f"{name}[{key!r}]": np.asarray(item) for key, item in value.items()})
        elif value is not None:
            flat[name] = np.asarray(value)
    return flat


def _is_table(value: Value) -> TypeGuard[list[dict[Any, Any]]]:
    """Whether it is a sequence of maps from the same keys, in the same order, to numbers."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return False
    keys = list(value[0])
    return all(list(item) == keys and all(np.ndim(each) == 0 for each in item.values()) for item in value)


def sample_axis(array: Array, spec: ValueSpec | None, layout: Layout, inputs: Sequence[ValueSpec]) -> int | None:
    """The axis of an output that counts the samples; None when no axis does."""
    symbols = {
        item.shape[layout.axes[item.name]]
        for item in inputs
        if item.name in layout.axes and layout.axes[item.name] < len(item.shape)
    }
    if spec is not None and len(spec.shape) == array.ndim:
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and dim in symbols and array.shape[axis] == layout.count:
                return axis
    sized = [axis for axis, size in enumerate(array.shape) if size == layout.count]
    if not layout.axes or not sized:
        return None
    return sized[0] if sized[0] == 0 or len(sized) == 1 else None


def samples_first(array: Array, axis: int | None) -> Array:
    """The array with its samples on axis 0; as one sample where it has no such axis."""
    return array[None] if axis is None else np.moveaxis(array, axis, 0)


def channel_axes(spec: ValueSpec | None, axis: int | None, rank: int) -> tuple[int, ...]:
    """Where an output's channels may lie, counted without its sample axis: first (NCHW) or last (NHWC), of these the
    ones that the model declares to be fixed; both where it declares nothing. rank: of the output, with its samples."""
    last = rank - 2
    ends = tuple(dict.fromkeys(each for each in (0, last) if 0 <= each <= last))
    if spec is None or len(spec.shape) != (rank if axis is not None else rank - 1):
        return ends
    dims = [dim for place, dim in enumerate(spec.shape) if place != axis]
    fixed = tuple(each for each in ends if isinstance(dims[each], int))
    return fixed or ends


@dataclass
class OutputStore:
    """Outputs of each batch, in memory up to 256 MiB and in a temporary folder above."""

    _held: list[dict[str, Array] | Path] = field(default_factory=list)
    _bytes: int = 0
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def extend(self, outputs: Iterable[dict[str, Array]]) -> None:
        """Keep the outputs of every batch, one at a time."""
        for values in outputs:
            self._bytes += sum(array.nbytes for array in values.values())
            if self._bytes <= IN_MEMORY_BYTES:
                self._held.append(values)
                continue
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="onnxcomp-reference-")
            path = Path(self._folder.name) / str(len(self._held))
            write_values(path, values)
            self._held.append(path)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (read_values(item) if isinstance(item, Path) else item for item in self._held)
