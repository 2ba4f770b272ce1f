"""Where a model's external data may lie: what ONNX Runtime accepts, and nothing else.

That is below the model's folder or, where the model is a link, below the folder of the file that the link leads to: so
are models laid out in the cache of Hugging Face's hub. Where the data is a link, its target counts.
"""

from __future__ import annotations

import os
from pathlib import Path

from onnx import TensorProto

from onnxcomp.errors import ModelError
from onnxcomp.tensors import data_length, data_offset, reference_of


def checked_path(tensor: TensorProto, name: str, model: Path | None) -> Path:
    """The file behind an external tensor, links followed: it is where it may be, and long enough.

    name: what to call the model. model: its path. Raises ModelError.
    """
    location = reference_of(tensor).get("location", "")
    where = f"{name}: external data of {tensor.name or 'a tensor'}"
    if model is None:
        raise ModelError(f"{where} cannot be found: the model has no folder. Load it by its path.")
    try:
        path = (model.parent / location).resolve()
        folders = (model.parent.resolve(), model.resolve().parent)
        size_bytes = path.stat().st_size if path.is_file() else None
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a name that no file can have
        raise ModelError(f"{where} cannot be found: {getattr(error, 'strerror', None) or error}.") from error
    if not location or Path(location).is_absolute() or not any(path.is_relative_to(each) for each in folders):
        raise ModelError(f"{where} {_outside(location, path, folders[0])}")
    if size_bytes is None:
        raise ModelError(f"{where} is missing: {location}.{_beside_target(location, model)}")
    offset, length = data_offset(tensor, where), data_length(tensor)
    if offset < 0 or length < 0 or offset + length > size_bytes:
        raise ModelError(f"{where} is cut short: {location} ends before byte {offset + length}.")
    return path


def _outside(location: str, path: Path, folder: Path) -> str:
    """What is wrong with a place where no data may lie."""
    as_named = Path(os.path.normpath(folder / location))
    if location and as_named.is_relative_to(folder) and as_named != path and not Path(location).is_absolute():
        return f"is reached by a link that leads outside the model's folder: {location} is {path}. Put a copy there."
    return f"points outside the model's folder: {location or 'nowhere'}."


def _beside_target(location: str, model: Path) -> str:
    """Advice where the model is a link and its data lies where that leads."""
    target = model.resolve()
    return f" It lies beside {target}: name that file." if (target.parent / location).is_file() else ""
