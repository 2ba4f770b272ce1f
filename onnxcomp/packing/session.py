"""Open a packed model in ONNX Runtime: what is decoded goes from memory to memory, and no plain file is written."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxcomp.errors import PackError
from onnxcomp.packing.encryption import PackKeys
from onnxcomp.packing.layout import MODEL, Item
from onnxcomp.packing.opening import opened
from onnxcomp.packing.packed import PackedModel
from onnxcomp.packing.skeleton import LEAST
from onnxcomp.runtime import Session
from onnxcomp.runtime.session import DTYPES
from onnxcomp.target import Target
from onnxcomp.tensors import (
    bits_of,
    clear_reference,
    data_length,
    data_offset,
    is_external,
    refer,
    reference_of,
    tensors_of,
)
from onnxcomp.wire import without_data

Array = NDArray[Any]

FROM_MEMORY = Path("from memory")  # what references say that are never followed
FROM_MEMORY_LEAST = 2**12  # bytes of tensors that are given to ONNX Runtime one by one


def open_session(
    packed: str | Path,
    *,
    ep: str = "cpu",
    threads: int = 1,
    identities: Sequence[str | Path] = (),
    passphrase_file: str | Path | None = None,
    base: str | Path | None = None,
) -> Session:
    """A session of ONNX Runtime on a packed model: ``open_session("m.onnxp").run({"x": array})``.

    ep, threads: as for ``onnxcomp optimize``. identities, passphrase_file: what opens an encrypted one. base: the
    model that a delta was taken against. Raises PackError where the file is broken, TargetError where the model does
    not load.
    """
    keys = PackKeys(tuple(map(Path, identities)), None if passphrase_file is None else Path(passphrase_file))
    with opened(Path(packed), keys, base=None if base is None else Path(base), in_memory=True) as model:
        data = model.all_data()
        header, given = _parted(model, data)
    return Target.of(ep, threads=threads).session(header, initializers=given)


def _parted(model: PackedModel, data: Mapping[int, bytes]) -> tuple[bytes, dict[str, Array]]:
    """The model without its large initializers, and these by name."""
    proto = _with_references(model, data)
    items = {(each.file, each.offset, each.length): each.index for each in model.layout.items}

    def bytes_of(tensor: TensorProto) -> bytes:
        location = reference_of(tensor).get("location", "")
        name, offset, length = _named(location), data_offset(tensor), data_length(tensor)
        index = items.get((name, offset, length))
        return data[index] if index is not None else _region(model, name, offset, length)

    given: dict[str, Array] = {}
    may_be_given = _given_names(proto)
    for tensor in proto.graph.initializer:
        if is_external(tensor) and tensor.name in may_be_given and tensor.name not in given:
            values = _array(tensor, bytes_of(tensor))
            if values is not None:
                given[tensor.name] = values
    initializers = {each.name for each in proto.graph.initializer} & set(given)
    for tensor in tensors_of(proto):
        if is_external(tensor) and tensor.name not in initializers:
            content = bytes_of(tensor)
            clear_reference(tensor)
            tensor.raw_data = content
    return proto.SerializeToString(deterministic=True), given


def _named(location: str) -> str:
    return MODEL if location == str(FROM_MEMORY) else location


def _region(model: PackedModel, name: str, offset: int, length: int) -> bytes:
    """Bytes of a file that are no item: a few, or such as another tensor shares."""
    for each in model.layout.files:
        content = b"".join(model.content(each))
        if each.name == name:
            return content[offset : offset + length]
    raise PackError(f"the packed file is broken: it has no file {name}.")


def _given_names(proto: ModelProto) -> set[str]:
    """The initializers that ONNX Runtime takes from memory: those that only nodes of the main graph read.

    It drops what nothing reads before it asks, and looks into subgraphs before.
    """
    names = [each.name for each in proto.graph.initializer]
    inner: set[str] = set()
    waiting = [body for node in proto.graph.node for body in _bodies(node)]
    while waiting:
        body = waiting.pop()
        inner.update(each.name for each in body.initializer)
        inner.update(each.name for each in body.output)
        for node in body.node:
            inner.update((*node.input, *node.output))
            waiting += _bodies(node)
    read = {name for node in proto.graph.node for name in node.input}
    others = {each.name for each in (*proto.graph.input, *proto.graph.output)}
    once = {name for name, count in Counter(names).items() if count == 1}
    return once & (read - others - inner)


def _bodies(node: NodeProto) -> list[GraphProto]:
    return [body for each in node.attribute for body in (*([each.g] if each.HasField("g") else []), *each.graphs)]


def _with_references(model: PackedModel, data: Mapping[int, bytes]) -> ModelProto:
    """The model's message, in which large tensors refer to their places in its file."""
    file = model.layout.files[0]
    by_offset = {each.offset: each for each in file.items}
    with mmap.mmap(-1, max(1, file.size)) as whole:  # places that nothing is written to take no memory
        position = start = 0
        for gap, item in zip(file.gaps, (*file.items, None), strict=True):
            whole[position : position + gap] = model.skeleton[start : start + gap]
            start += gap
            position += gap + (item.length if item is not None else 0)
        view = memoryview(whole)
        base = np.frombuffer(view, np.uint8).ctypes.data
        referred: set[int] = set()

        def noted(tensor: TensorProto, part: memoryview) -> bool:
            if _is_held_by_numpy(tensor, len(part)):
                referred.add(np.frombuffer(part, np.uint8).ctypes.data - base)
            return False

        def moved(tensor: TensorProto, part: memoryview) -> bool:
            offset = np.frombuffer(part, np.uint8).ctypes.data - base
            if offset not in referred:
                return False
            refer(tensor, FROM_MEMORY, offset, len(part))
            return True

        without_data(view[: file.size], FROM_MEMORY_LEAST, noted)
        for item in by_offset.values():
            if item.offset not in referred:
                whole[item.offset : item.offset + item.length] = data[item.index]
        header = without_data(view[: file.size], FROM_MEMORY_LEAST, moved)
        view.release()
    return ModelProto.FromString(header)


def _is_held_by_numpy(tensor: TensorProto, length: int) -> bool:
    if tensor.external_data or tensor.HasField("data_location"):
        return False
    return _array(tensor, bytes(0), length) is not None


def _array(tensor: TensorProto, data: bytes, length: int | None = None) -> Array | None:
    """The data as the tensor's array; None for types that numpy and ONNX Runtime do not share, or another shape."""
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if bits_of(tensor.data_type) < 8 or dtype not in DTYPES.values() or dtype.hasobject:
            return None
    except (ValueError, KeyError, TypeError):
        return None
    size = int(np.prod(tensor.dims, dtype=object) or 0) if tensor.dims else 1
    if size * dtype.itemsize != (len(data) if length is None else length):
        return None
    return np.frombuffer(data, dtype).reshape(tuple(tensor.dims)) if length is None else np.empty(0, dtype)


def item_of(model: PackedModel, name: str) -> Item:
    """The data of the tensor of a name. Raises PackError where there is none, or several."""
    found = [each for each in model.layout.items if each.key.partition(":")[2] == name]
    if len(found) != 1:
        raise PackError(f"{name}: {len(found)} tensors of that name have data of {LEAST} bytes and more.")
    return found[0]
