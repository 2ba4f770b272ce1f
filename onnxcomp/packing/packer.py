"""Pack a model: read unit by unit, packed in the best way, written as it comes. Memory holds one unit at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import OnnxcompError
from onnxcomp.files import Transaction, refuse_files
from onnxcomp.packing.code_forms import symbols_of, write_codes
from onnxcomp.packing.coders.general import write_bytes
from onnxcomp.packing.coders.tensor_data import write_data
from onnxcomp.packing.container import PART_BYTES, ContainerWriter, PackedFile
from onnxcomp.packing.origin import PlainModel
from onnxcomp.packing.recognition import Planes, StoredCodes, stored_codes
from onnxcomp.packing.units import CODES, DATA, GAPS, GROUP, UnitPlan, group_dims, is_whole, parts_of, plans

Array = NDArray[Any]


@dataclass(frozen=True)
class Packed:
    """What was written: the file, its bytes, those of the model, and the tensors in it."""

    path: Path
    size_bytes: int
    model_bytes: int
    tensors: int


def pack(model: str | Path, output: str | Path, *, force: bool = False) -> Packed:
    """Pack a model and its external data, bit for bit, in one file.

    Raises ModelError for what is no model or cannot be read, PackError where the extra ``onnxcomp[pack]`` is missing.
    """
    path, target = Path(model), Path(output)
    with PlainModel(path) as origin:
        refuse_files([target], origin.inputs, force=force)
        with Transaction() as outputs:
            part = outputs.write(target, packed_bytes(origin), last=True)
            size = part.stat().st_size
            origin.inputs.refuse_changes()
            outputs.commit()
        layout = origin.layout
        return Packed(target, size, sum(each.size for each in layout.files), len(layout.items))


def packed_bytes(origin: PlainModel) -> Iterator[bytes]:
    """The container, piece by piece."""
    writer = ContainerWriter()
    index = writer.index
    index.skeleton = len(origin.skeleton)
    index.gaps = origin.layout.gap_bytes
    for each, digest in zip(origin.layout.files, origin.file_digests, strict=True):
        index.files.append(PackedFile(each.name, each.size, digest))
    yield writer.begin()
    for piece in _in_parts(origin.gaps()):
        yield writer.add(GAPS, (), write_bytes(piece))
    for plan in plans(origin.layout, recognized(origin)):
        for kind, items, payload in units_of(origin, plan):
            yield writer.add(kind, items, payload)
    yield writer.finish()


def recognized(origin: PlainModel) -> list[StoredCodes]:
    """The weights that the model stores as codes; none where its graph is not understood."""
    try:
        return list(stored_codes(origin.opened()))
    except (OnnxcompError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return []


def units_of(origin: PlainModel, plan: UnitPlan) -> Iterator[tuple[int, tuple[int, ...], bytes]]:
    """(kind, items, payload) of what is planned; items by themselves where they cannot be packed together."""
    numbers = tuple(each.index for each in plan.items)
    if plan.kind == CODES:
        payload = _codes(origin, plan)
        if payload is not None:
            yield CODES, numbers, payload
            return
    elif plan.kind == GROUP and len(plan.items) > 1 and is_whole(plan.items):
        data = b"".join(origin.data(each) for each in plan.items)
        yield GROUP, numbers, write_data(data, plan.items[0].data_type, group_dims(plan.items))
        return
    for item in plan.items:
        for part in [plan.part] if plan.part is not None else parts_of(item):
            data = origin.read(item.file, item.offset + part.start, part.stop - part.start)
            yield DATA, (item.index,), write_data(data, item.data_type, part.dims)


# --- inside --------------------------------------------------------------------------------------------


def _codes(origin: PlainModel, plan: UnitPlan) -> bytes | None:
    """The symbols of a weight's codes packed; None where its constants are laid out in another way."""
    codes = plan.codes
    assert codes is not None
    arrays: dict[str, Array] = {}
    for name, item in zip(codes.names, plan.items, strict=True):
        wide = any(name in each.names and each.layout.widths[0] > 8 for each in _planes(codes))
        data = origin.data(item)
        if wide and len(data) % 2:
            return None
        arrays[name] = np.frombuffer(data, "<u2" if wide else np.uint8)
    found = symbols_of(codes, arrays)
    return None if found is None else write_codes(*found)


def _planes(codes: StoredCodes) -> Sequence[Planes]:
    return [each for each in (codes.values, codes.steps, codes.base) if each is not None]


def _in_parts(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in parts of ``PART_BYTES``; the last one may be shorter."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= PART_BYTES:
            yield bytes(held[:PART_BYTES])
            del held[:PART_BYTES]
    if held:
        yield bytes(held)


