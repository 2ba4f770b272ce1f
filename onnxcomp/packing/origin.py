"""A model as it lies on disk, plain: what is packed, and what a delta is taken against."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from onnx import ModelProto, TensorProto

from onnxcomp.errors import ModelError, PackError
from onnxcomp.external_data import checked_path
from onnxcomp.files import Inputs
from onnxcomp.model import Model
from onnxcomp.packing.layout import MODEL, FilesLayout, Item, layout_of
from onnxcomp.packing.skeleton import pieces, places
from onnxcomp.regular_form import regular_form
from onnxcomp.tensors import data_length, refer, reference_of
from onnxcomp.wire import without_data

READ_BYTES = 2**22  # read at a time
REFERRED_FROM = 1024  # bytes of a tensor that stays in the file while the graph is looked at


class PackSource(Protocol):
    """A model whose tensors' data can be had one at a time."""

    layout: FilesLayout
    skeleton: bytes

    def data(self, item: Item) -> bytes:
        """The bytes of an item."""
        ...

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the SHA-256 of all files."""
        ...


class PlainModel:
    """A model file and its external data. ``close`` it, or use it in a ``with``.

    layout: what the files are made of. skeleton: the model without the items' data.
    Raises PackError for what is no ONNX model, ModelError for external data that is missing or out of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inputs = Inputs([path])
        self._stack = contextlib.ExitStack()
        try:
            self._files: dict[str, BinaryIO] = {MODEL: self._stack.enter_context(path.open("rb"))}
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}.") from error
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise

    def _open(self) -> None:
        size = self.path.stat().st_size
        if not size:
            raise ModelError(f"{self.path}: not an ONNX model: it is empty.")
        self._mapped = memoryview(mmap.mmap(self._files[MODEL].fileno(), 0, access=mmap.ACCESS_READ))
        try:
            found, outside = places(self._mapped, is_skeleton=False)
        except PackError as error:
            raise ModelError(f"{self.path.name}: {error}") from error
        self.skeleton = b"".join(pieces(self._mapped, found))
        sizes = {MODEL: size}
        for tensor in outside:
            location = reference_of(tensor).get("location", "")
            held = checked_path(tensor, self.path.name, self.path)
            self.inputs.add(held)
            if location not in self._files:
                self._files[location] = self._stack.enter_context(held.open("rb"))
                sizes[location] = held.stat().st_size
        self.layout = layout_of(found, outside, sizes)

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def __enter__(self) -> PlainModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def data(self, item: Item) -> bytes:
        return self.read(item.file, item.offset, item.length)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of a file. Raises ModelError where it has become shorter."""
        file = self._files[name]
        file.seek(offset)
        content = file.read(length)
        if len(content) != length:
            raise ModelError(f"{self.path}: was changed while the run read it. Run again when it stays as it is.")
        return content

    def gaps(self) -> Iterator[bytes]:
        """The gaps of all files in order: the skeleton, then those of the external data, piece by piece."""
        yield self.skeleton
        for each in self.layout.files[1:]:
            start = 0
            for gap, item in zip(each.gaps, (*each.items, None), strict=True):
                for offset in range(start, start + gap, READ_BYTES):
                    yield self.read(each.name, offset, min(READ_BYTES, start + gap - offset))
                start += gap + (item.length if item is not None else 0)

    def file_digest(self, name: str) -> bytes:
        """The SHA-256 of a file."""
        file = self._files[name]
        file.seek(0)
        hashed = hashlib.sha256()
        while piece := file.read(READ_BYTES):
            hashed.update(piece)
        return hashed.digest()

    @cached_property
    def file_digests(self) -> tuple[bytes, ...]:
        """The SHA-256 of all files."""
        return tuple(self.file_digest(each.name) for each in self.layout.files)

    @property
    def digest(self) -> bytes:
        return digest_of(self.file_digests)

    def opened(self) -> Model:
        """The model for questions about its graph; data stays in the files. Raises ModelError where it is malformed."""
        whole = np.frombuffer(self._mapped, np.uint8)

        def referred(tensor: TensorProto, data: memoryview) -> bool:
            if tensor.HasField("data_location") or tensor.external_data or tensor.data_type == TensorProto.STRING:
                return False
            try:
                if data_length(tensor) != len(data):
                    return False
            except (ValueError, KeyError, TypeError):
                return False
            offset = np.frombuffer(data, np.uint8).ctypes.data - whole.ctypes.data
            refer(tensor, self.path.resolve(), offset, len(data))
            return True

        proto = ModelProto.FromString(without_data(self._mapped, REFERRED_FROM, referred))
        regular_form(proto)
        return Model(proto, folder=self.path.parent, path=self.path)


def digest_of(file_digests: tuple[bytes, ...]) -> bytes:
    """What a delta names its base by."""
    return hashlib.sha256(b"".join(file_digests)).digest()
