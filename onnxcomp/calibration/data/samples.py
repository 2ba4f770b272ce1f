"""Some samples of arrays that are cut together: taken out, as the model declares them, and told apart by content."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.data.sample_axes import Cut
from onnxcomp.errors import CalibrationError
from onnxcomp.runtime import Value, ValueSpec

Array = NDArray[Any]
DIGEST_BYTES = 16
CHUNK_BYTES = 2**20
SAFE_CASTS = {("float64", "float32"), ("int32", "int64"), ("int64", "int32")}


def taken(value: Array, chosen: NDArray[np.int64], axis: int) -> Array:
    """Some samples of an array. Of one that is mapped from a file, nothing stays in memory that was read for it."""
    found: Array = np.take(value, chosen, axis=axis)
    held = getattr(value, "_mmap", None)
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)
    return found


def check_type(name: str, value: Value, spec: ValueSpec) -> None:
    """Raise CalibrationError where a value of the file ``name`` is not of the type that the model wants, nor nearly."""
    if not isinstance(value, np.ndarray) or spec.dtype is None:
        if spec.is_tensor and not isinstance(value, np.ndarray):
            raise CalibrationError(f"calibration data: {name}: input {spec.name} is not an array")
        return
    is_text = spec.dtype == object and value.dtype.kind in "OUS"
    if value.dtype != spec.dtype and not is_text and (value.dtype.name, spec.dtype.name) not in SAFE_CASTS:
        raise CalibrationError(
            f"calibration data: {name}: input {spec.name} is {value.dtype.name}, the model wants {spec.element}"
        )


def as_declared(value: Value, spec: ValueSpec) -> Value:
    """The value in the type that the model wants; CalibrationError where integers do not fit."""
    if not isinstance(value, np.ndarray) or spec.dtype is None or value.dtype == spec.dtype:
        return np.ascontiguousarray(value).reshape(value.shape) if isinstance(value, np.ndarray) else value
    if spec.dtype == np.int32 and value.size:
        limits = np.iinfo(np.int32)
        if value.min() < limits.min or value.max() > limits.max:
            raise CalibrationError(f"calibration data: input {spec.name} holds integers beyond int32")
    return value.astype(spec.dtype)


def digests(
    values: Mapping[str, Value], cut: Cut, inputs: Sequence[ValueSpec], positions: NDArray[np.int64]
) -> Iterator[bytes]:
    """For each sample a digest of all that is fed with it; what is not cut is the same for all and read once."""
    fed = [(spec, values[spec.name]) for spec in inputs if spec.name in values]
    start = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for spec, value in fed:
        if spec.name not in cut.axes:
            _add(start, as_declared(value, spec))
    sample_bytes: int = sum(value.nbytes // max(cut.count, 1) for spec, value in fed if spec.name in cut.axes)
    size = max(1, CHUNK_BYTES // max(sample_bytes, 1))
    for first in range(0, len(positions), size):
        chosen = positions[first : first + size]
        own = [start.copy() for _ in chosen]
        for spec, value in fed:
            if spec.name in cut.axes:
                axis = cut.axes[spec.name]
                some = np.moveaxis(as_declared(taken(value, chosen, axis), spec), axis, 0)
                for digest, sample in zip(own, some, strict=True):
                    _add(digest, sample)
        yield from (digest.digest() for digest in own)


def _add(digest: Any, value: Value) -> None:
    """Take in a value with its type and shape: a tensor of any kind, a list of them, or none."""
    if isinstance(value, list):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _add(digest, item)
        return
    array = np.asarray(value)
    digest.update(f"{array.dtype}{array.shape}".encode())
    is_plain = array.dtype.kind not in "OUS"
    digest.update(array.tobytes() if is_plain else repr(array.tolist()).encode())
