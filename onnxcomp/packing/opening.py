"""Open a packed model: decrypt it, and open the base that it is a delta of, packed or not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from onnxcomp.errors import ModelError, PackError
from onnxcomp.packing.container import MAGIC
from onnxcomp.packing.deltas import Base
from onnxcomp.packing.encryption import MARK, PackKeys
from onnxcomp.packing.origin import PackSource, PlainModel
from onnxcomp.packing.packed import PackedModel


@contextlib.contextmanager
def opened(path: Path, keys: PackKeys, *, base: Path | None = None, in_memory: bool = False) -> Iterator[PackedModel]:
    """A packed model while it is read. in_memory: nothing that it decrypts to is kept on disk.

    Raises PackError, which names the file, where it is broken, locked, or of another base.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_file(path))
        other = None if base is None else stack.enter_context(opened_source(base, keys, in_memory=in_memory))
        try:
            plain = stack.enter_context(keys.opened(file, in_memory=in_memory))
            yield PackedModel(plain, None if other is None else Base(other))
        except PackError as error:
            raise PackError(f"{path}: {error}") from error


@contextlib.contextmanager
def opened_source(path: Path, keys: PackKeys, *, in_memory: bool = False) -> Iterator[PackSource]:
    """A model whose tensors can be had, packed or not."""
    if is_packed(path):
        with opened(path, keys, in_memory=in_memory) as model:
            yield model
    else:
        with PlainModel(path) as plain:
            yield plain


def is_packed(path: Path) -> bool:
    """Whether a file is a packed or an encrypted one. Raises ModelError where it cannot be read."""
    with _file(path) as file:
        return file.read(max(len(MAGIC), len(MARK))).startswith((MAGIC, MARK))


def _file(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from error
