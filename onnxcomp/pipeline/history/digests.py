"""What models and data are known by: SHA-256 of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.calibration import CalibrationData
from onnxcomp.graph.ir.seeds import unseeded
from onnxcomp.model import Model, as_one_file
from onnxcomp.receipt import digest, file_digest

WRITTEN_WHOLE_BYTES = 2**28  # models below are written as one file, whatever it is called


def source_digest(model: Model) -> str:
    """Of the file that a model was read from, else of its content."""
    if model.path is not None:
        return file_digest(model.path)
    return digest(unseeded(model).as_written.SerializeToString(deterministic=True))


def result_digest(model: Model) -> str | None:
    """Of the file that ``save`` makes of the model; None for large ones: the name of their data file is in it."""
    content = None if model.size_bytes >= WRITTEN_WHOLE_BYTES else as_one_file(model)
    if content is None:
        return None
    found = hashlib.sha256()
    for piece in content:
        found.update(piece)
    return found.hexdigest()


def data_digest(data: CalibrationData) -> str:
    """Of all samples, by their content: how they are cut, shuffled and fed makes no difference."""
    found = hashlib.sha256()
    for group in data.groups:
        _take_in(found, group.load())
    return found.hexdigest()


def _take_in(found: Any, value: Any) -> None:
    """Add a value: an array, or a sequence or mapping of these."""
    if isinstance(value, Mapping):
        for name in sorted(value):
            found.update(str(name).encode())
            _take_in(found, value[name])
    elif isinstance(value, Sequence) and not isinstance(value, str):
        found.update(f"{len(value)} values".encode())
        for each in value:
            _take_in(found, each)
    else:
        array = np.asarray(value)
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(str(array.tolist()).encode() if array.dtype.kind in "OSU" else np.ascontiguousarray(array).data)
