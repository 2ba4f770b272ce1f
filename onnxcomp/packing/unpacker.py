"""Unpack a model: its files as they were, all or none of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
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
    with _folders(paths[1:], target.parent), Transaction() as outputs:
        refuse_files(paths, inputs, force=force)
        for each, path in zip(files, paths, strict=True):
            outputs.write(path, model.content(each), last=each.name == MODEL)
        outputs.commit()
    return Unpacked(tuple(paths), sum(each.size for each in files))


@contextlib.contextmanager
def _folders(paths: Sequence[Path], top: Path) -> Iterator[None]:
    """Make the folders of files below ``top``; those that were made go again where anything fails."""
    made: list[Path] = []
    try:
        for path in paths:
            missing = [each for each in path.parents if each.is_relative_to(top) and not each.exists()]
            for folder in reversed(missing if top.is_dir() else []):
                folder.mkdir()
                made.append(folder)
        yield
    except BaseException:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def path_of(file: FileLayout, target: Path) -> Path:
    """Where a file of a model goes: below the folder of the model. Raises PackError where it does not lie there."""
    if file.name == MODEL:
        return target
    parts = PurePosixPath(file.name).parts
    if not parts or PurePosixPath(file.name).is_absolute() or ".." in parts or "\0" in file.name or "\\" in file.name:
        raise PackError(f"the packed file is broken: it has a file outside the model's folder: {file.name}.")
    return target.parent.joinpath(*parts)
