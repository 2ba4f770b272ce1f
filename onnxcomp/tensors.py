"""Tensors as protos whose data may lie in another file: the model's external data, or the scratch folder."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sized
from io import BufferedWriter
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnxcomp.errors import ModelError
from onnxcomp.wire import varint, without_data

Array = NDArray[Any]

SHORT_FLOAT_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
FLOAT_TYPES = SHORT_FLOAT_TYPES | {TensorProto.FLOAT, TensorProto.DOUBLE}
FLOAT8_TYPES = frozenset({
    TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ,
})  # fmt: skip
ALL_FLOAT_TYPES = FLOAT_TYPES | FLOAT8_TYPES
SPILL_BYTES = 2**17  # tensors from this size on go to the scratch folder
ALIGNMENT_BYTES = 4096  # of tensors in a data file, so that runtimes can map them
MOVED_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING}


class Scratch:
    """A temporary folder, made when it is first needed, that disappears with the last model that refers to it.

    spills: whether large new tensors go there; else they stay in memory.
    """

    def __init__(self, *, spills: bool = True) -> None:
        self.spills = spills
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="onnxcomp-")).resolve()
                weakref.finalize(self, shutil.rmtree, str(self._folder), ignore_errors=True)
            return self._folder

    def takes(self, nbytes: int) -> bool:
        """Whether a new tensor of so many bytes goes to the folder."""
        return self.spills and nbytes >= SPILL_BYTES

    def new_path(self, suffix: str) -> Path:
        """A path in the folder that nothing has used yet."""
        return self.folder / f"{next(self._numbers)}{suffix}"

    def holds(self, tensor: TensorProto) -> bool:
        """Whether the tensor's data lies in the folder."""
        return Path(reference_of(tensor).get("location", "")).parent == self.folder


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's data lies in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def external_path(tensor: TensorProto, folder: Path | None) -> Path:
    """The file that holds an external tensor's data."""
    location = Path(reference_of(tensor)["location"])
    return location if location.is_absolute() else ((folder or Path()) / location).resolve()


def read_tensor(tensor: TensorProto, folder: Path | None = None) -> Array:
    """The values of a tensor of any type; mapped from disk (read-only) where the data is external."""
    shape = tuple(tensor.dims)
    if is_external(tensor):
        return _from_bytes(external_bytes(tensor, folder), tensor.data_type, shape)
    if tensor.HasField("raw_data"):
        return _from_bytes(np.frombuffer(tensor.raw_data, np.uint8), tensor.data_type, shape)
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{tensor.name}: the tensor cannot be read: {error}.") from error


def make_tensor(name: str, values: Array, scratch: Scratch | None = None) -> TensorProto:
    """A TensorProto of the values; above 128 kB its data goes to the scratch folder, when one is given."""
    if scratch is None or not scratch.takes(values.nbytes) or values.dtype == object:
        return onnx.numpy_helper.from_array(np.asarray(values), name)
    if is_packed(values.dtype):
        return _packed(name, values, scratch)
    mapped = spill(values, scratch)
    return reference_to(name, mapped)


def is_packed(dtype: np.dtype[Any]) -> bool:
    """Whether several values of the type share a byte in a tensor; numpy has a byte for each."""
    return bits_of(onnx.helper.np_dtype_to_tensor_dtype(dtype)) < 8


def _packed(name: str, values: Array, scratch: Scratch) -> TensorProto:
    """A reference to the values packed, several in a byte."""
    whole = onnx.numpy_helper.from_array(np.asarray(values), name)
    tensor = reference_to(name, spill(np.frombuffer(whole.raw_data, np.uint8), scratch))
    tensor.data_type = whole.data_type
    del tensor.dims[:]
    tensor.dims.extend(whole.dims)
    return tensor


def spill(values: Array, scratch: Scratch) -> np.memmap[Any, Any]:
    """Write the values to the scratch folder and give them back mapped, read-only."""
    path = scratch.new_path(".bin")
    contiguous = np.ascontiguousarray(values)
    with path.open("wb") as file:
        write_array(file, contiguous)
    return np.memmap(path, dtype=contiguous.dtype, mode="r", shape=contiguous.shape)


def write_array(file: BinaryIO, values: Array) -> None:
    """Write the bytes of a contiguous array; numpy's own way does not say why where it fails."""
    file.write(values.reshape(-1).view(np.uint8).data)


class HeldFile:
    """A file of the scratch folder that goes with the last array or model that holds this."""

    def __init__(self, path: str) -> None:
        self.path = path
        weakref.finalize(self, _removed, path)


def lent(values: Array, scratch: Scratch) -> np.memmap[Any, Any]:
    """The same, in a file that goes with the array and the models whose tensors refer to it."""
    mapped = spill(values, scratch)
    hold(mapped, HeldFile(str(mapped.filename)))
    return mapped


def hold(values: Array, file: HeldFile) -> None:
    """Let an array that is mapped from a file, and all parts of it, hold the file."""
    while isinstance(values.base, np.memmap):
        values = values.base
    vars(values)["held_file"] = file


def held_file(values: object) -> HeldFile | None:
    """What holds the file that an array, or the one that it is a part of, was lent."""
    while isinstance(values, np.ndarray):
        found = getattr(values, "held_file", None)
        if found is not None:
            return found  # type: ignore[no-any-return]
        values = values.base
    return None


def _removed(path: str) -> None:
    with contextlib.suppress(OSError):  # it is open on Windows, and goes with the folder
        if os.path.isfile(path):  # and no device
            os.unlink(path)


def spilled_from(content: bytes, scratch: Scratch) -> bytes:
    """A serialized model whose large tensors refer to a file in the scratch folder; as it is where that has no room."""
    if len(content) < SPILL_BYTES:
        return content
    path = scratch.new_path(".data")
    try:
        with path.open("wb") as file:
            return without_data(content, SPILL_BYTES, functools.partial(_move, file))
    except (OSError, DecodeError):  # what is no message is told apart when it is parsed
        _removed(str(path))
        return content


def _move(file: BufferedWriter, tensor: TensorProto, data: memoryview) -> bool:
    """Write the data and let the tensor refer to it, where it is plain data of the tensor's type and shape."""
    if tensor.data_type not in MOVED_TYPES or tensor.HasField("data_location") or tensor.external_data:
        return False
    if any(dim < 0 for dim in tensor.dims) or data_length(tensor) != len(data) or any(map(len, typed_data(tensor))):
        return False
    file.write(bytes(-file.tell() % ALIGNMENT_BYTES))
    refer(tensor, Path(file.name), file.tell(), len(data))
    file.write(data)
    return True


def refer(tensor: TensorProto, path: Path, offset: int, length: int) -> None:
    """Let a tensor without data refer to a file."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", str(path)), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def is_mapped(values: object) -> TypeGuard[np.memmap[Any, Any]]:
    """Whether the values are those of a file; operations on a memmap give memmaps, too, that map nothing."""
    return isinstance(values, np.memmap) and values.filename is not None


def reference_to(name: str, mapped: np.memmap[Any, Any]) -> TensorProto:
    """A TensorProto that refers to an array of a file, or to a contiguous part of it."""
    tensor = TensorProto(name=name, dims=mapped.shape)
    tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(mapped.dtype)
    refer(tensor, Path(str(mapped.filename)), _place(mapped), mapped.nbytes)
    return tensor


def _place(mapped: np.memmap[Any, Any]) -> int:
    """Where the first value stands in the file. ``offset`` is that of the array of which this is a part."""
    whole: Array = np.frombuffer(vars(mapped)["_mmap"], np.uint8)
    return mapped.offset - mapped.offset % mmap.ALLOCATIONGRANULARITY + mapped.ctypes.data - whole.ctypes.data


def clear_reference(tensor: TensorProto) -> None:
    """Make an external tensor an inline one without data."""
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def tensors_of(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of the model: initializers, sparse ones, attributes, subgraphs, functions, training."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)
    for training in proto.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                       *attribute.sparse_tensors):  # fmt: skip
            yield sparse.values
            yield sparse.indices
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graph_tensors(graph)


def reference_of(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def data_offset(tensor: TensorProto, where: str = "") -> int:
    try:
        return int(reference_of(tensor).get("offset", 0) or 0)
    except ValueError as error:
        raise ModelError(f"{where} has a broken offset: {error}.") from error


def typed_data(tensor: TensorProto) -> tuple[Sized, ...]:
    """The fields that may hold the values instead of ``raw_data``."""
    floats, integers = (tensor.float_data, tensor.double_data), (tensor.int32_data, tensor.int64_data)
    return (*floats, *integers, tensor.uint64_data, tensor.string_data)


def data_length(tensor: TensorProto) -> int:
    """Bytes of the tensor's data, from its type and shape."""
    count = math.prod(tensor.dims)
    return (count * bits_of(tensor.data_type) + 7) // 8


def whole_bytes(tensor: TensorProto) -> int:
    """The length of the tensor's message with its data in it."""
    if not is_external(tensor):
        return tensor.ByteSize()
    bare = TensorProto()
    bare.CopyFrom(tensor)
    clear_reference(bare)
    length = data_length(tensor)
    return bare.ByteSize() + 1 + len(varint(length)) + length


def bits_of(data_type: int) -> int:
    """Bits of one element of an ONNX tensor type."""
    name = TensorProto.DataType.Name(data_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    if name in ("INT2", "UINT2"):
        return 2
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize) * 8


def external_bytes(tensor: TensorProto, folder: Path | None) -> Array:
    length = data_length(tensor)
    if length == 0:
        return np.empty(0, np.uint8)
    return np.memmap(external_path(tensor, folder), np.uint8, "r", data_offset(tensor), (length,))


def _from_bytes(data: Array, data_type: int, shape: tuple[int, ...]) -> Array:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(data_type)
    if bits_of(data_type) < 8:
        tensor = TensorProto(dims=shape, data_type=data_type, raw_data=data.tobytes())
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    if data.size != math.prod(shape) * dtype.itemsize:
        raise ModelError(f"a tensor of shape {shape} has {data.size} bytes of data, which do not fit.")
    return data.view(dtype).reshape(shape)


def set_location(tensor: TensorProto, location: str) -> None:
    entries = {**reference_of(tensor), "location": location}
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
