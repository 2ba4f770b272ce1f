"""Unpack a model: its files as they were, all or none of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onnxcomp.errors import PackError
from onnxcomp.files import Inputs, Transaction, refuse_files
from onnxcomp.packing.encryption import PackKeys
from onnxcomp.packing.layout import MODEL, FileLayout
from onnxcomp.packing.opening import opened
from onnxcomp.packing.packed import PackedModel


@dataclass(frozen=True)
class Unpacked:
    """The files written, the model first, and their bytes."""

    paths: tuple[Path, ...]
    size_bytes: int


def unpack(
    packed: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    keys: PackKeys | None = None,
    force: bool = False,
) -> Unpacked:
    """Write the model that a file holds, and its external data below the same folder under the names that it had.

    base: the model that a delta was taken against. keys: what opens an encrypted file.
    Raises PackError where the file is broken, locked, or a delta of another base; then nothing is written.
    """
    source, target = Path(packed), Path(output)
    inputs = Inputs([source] if base is None else [source, Path(base)])
    with opened(source, keys or PackKeys(), base=None if base is None else Path(base)) as model:
        return _written(model, target, inputs, force)


def _written(model: PackedModel, target: Path, inputs: Inputs, force: bool) -> Unpacked:
    files = model.layout.files
    paths = [path_of(each, target) for each in files]
    for path in paths[1:]:
        path.parent.mkdir(parents=True, exist_ok=True)
    refuse_files(paths, inputs, force=force)
    with Transaction() as outputs:
        for each, path in zip(files, paths, strict=True):
            outputs.write(path, model.content(each), last=each.name == MODEL)
        outputs.commit()
    return Unpacked(tuple(paths), sum(each.size for each in files))


def path_of(file: FileLayout, target: Path) -> Path:
    """Where a file of a model goes: below the folder of the model. Raises PackError where it does not lie there."""
    if file.name == MODEL:
        return target
    parts = PurePosixPath(file.name).parts
    if not parts or PurePosixPath(file.name).is_absolute() or ".." in parts or "\0" in file.name or "\\" in file.name:
        raise PackError(f"the packed file is broken: it has a file outside the model's folder: {file.name}.")
    return target.parent.joinpath(*parts)
