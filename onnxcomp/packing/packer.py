"""Pack a model: read unit by unit, packed in the best way, written as it comes. Memory holds one unit at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onnxcomp.errors import OnnxcompError
from onnxcomp.files import Transaction, refuse_files
from onnxcomp.packing.code_forms import CodeForm, symbols_of, write_codes
from onnxcomp.packing.coders.general import write_bytes
from onnxcomp.packing.coders.tensor_data import write_data
from onnxcomp.packing.container import PART_BYTES, ContainerWriter, PackedFile
from onnxcomp.packing.deltas import Base, Made, different, moved, same
from onnxcomp.packing.encryption import Locks, PackKeys
from onnxcomp.packing.layout import Item
from onnxcomp.packing.opening import opened_source
from onnxcomp.packing.origin import PlainModel
from onnxcomp.packing.recognition import StoredCodes, stored_codes
from onnxcomp.packing.units import CODES, DATA, GAPS, GROUP, ItemPart, UnitPlan, is_whole, parts_of, plans, whole_group

Array = NDArray[Any]


@dataclass(frozen=True)
class Packed:
    """What was written: the file, its bytes, those of the model, and the tensors in it."""

    path: Path
    size_bytes: int
    model_bytes: int
    tensors: int


def pack(
    model: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    locks: Locks | None = None,
    keys: PackKeys | None = None,
    force: bool = False,
) -> Packed:
    """Pack a model and its external data, bit for bit, in one file.

    base: a model, packed or not, that whoever unpacks it has: only what differs is packed. locks: to whom the file is
    encrypted. keys: what opens the base.
    Raises ModelError for what is no model or cannot be read, PackError where the extra ``onnxcomp[pack]`` is missing.
    """
    path, target = Path(model), Path(output)
    closed = locks or Locks()
    closed.check()
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(PlainModel(path))
        if base is not None:
            origin.inputs.add(Path(base))
        refuse_files([target], origin.inputs, force=force)
        other = None if base is None else stack.enter_context(opened_source(Path(base), keys or PackKeys()))
        content = packed_bytes(origin, None if other is None else Base(other))
        outputs = stack.enter_context(Transaction())
        part = outputs.write(target, closed.locked(content) if closed else content, last=True)
        size = part.stat().st_size
        origin.inputs.refuse_changes()
        outputs.commit()
        layout = origin.layout
        return Packed(target, size, sum(each.size for each in layout.files), len(layout.items))


def packed_bytes(origin: PlainModel, base: Base | None = None) -> Iterator[bytes]:
    """The container, piece by piece."""
    writer = ContainerWriter()
    index = writer.index
    index.skeleton, index.gaps = len(origin.skeleton), origin.layout.gap_bytes
    for each, digest in zip(origin.layout.files, origin.file_digests, strict=True):
        index.files.append(PackedFile(each.name, each.size, digest))
    if base is not None:
        index.base = base.source.digest
    yield writer.begin()
    for piece in _in_parts(origin.gaps()):
        yield writer.add(GAPS, (), write_bytes(piece, base.source.skeleton if base is not None else b""))
    pairs = [] if base is None else _unchanged(origin, base)
    if base is not None:
        for made in same(pairs):
            yield writer.add(*made)
    for plan in plans(origin.layout, recognized(origin), {new.index for new, _ in pairs}):
        for made in units_of(origin, plan, base):
            yield writer.add(*made)
    yield writer.finish()


def recognized(origin: PlainModel) -> list[StoredCodes]:
    """The weights that the model stores as codes; none where its graph is not understood."""
    try:
        return list(stored_codes(origin.opened()))
    except (OnnxcompError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return []


def units_of(origin: PlainModel, plan: UnitPlan, base: Base | None = None) -> Iterator[Made]:
    """(kind, items, payload) of what is planned; items by themselves where they cannot be packed together."""
    own = tuple(each.index for each in plan.items)
    if plan.kind == CODES:
        found = _codes(origin, plan)
        if found is not None:
            yield _smallest((CODES, own, write_codes(*found)), _moved(plan, *found, base))
            return
    elif plan.kind == GROUP and len(plan.items) > 1 and is_whole(plan.items):
        data, whole = b"".join(origin.data(each) for each in plan.items), whole_group(plan.items)
        made = GROUP, own, write_data(data, plan.items[0].data_type, whole.dims)
        yield _smallest(made, _different(data, plan.items, base, whole))
        return
    for item in plan.items:
        parts = [plan.part] if plan.part is not None else parts_of(item)
        for part in parts:
            data = origin.read(item.file, item.offset + part.start, part.stop - part.start)
            made = DATA, (item.index,), write_data(data, item.data_type, part.dims)
            yield _smallest(made, _different(data, (item,), base, part))


# --- inside --------------------------------------------------------------------------------------------


def _codes(origin: PlainModel, plan: UnitPlan) -> tuple[CodeForm, Array] | None:
    """The symbols of a weight's codes; None where its constants are laid out in another way."""
    assert plan.codes is not None
    return symbols_of(plan.codes, [origin.data(each) for each in plan.items])


def _smallest(made: Made, other: Made | None) -> Made:
    return made if other is None or len(made[2]) <= len(other[2]) else other


def _different(data: bytes, items: Sequence[Item], base: Base | None, part: ItemPart) -> Made | None:
    old = [] if base is None else [each for each in map(base.like, items) if each is not None]
    return None if base is None or len(old) < len(items) else different(data, items, old, base, part)


def _moved(plan: UnitPlan, form: CodeForm, symbols: Array, base: Base | None) -> Made | None:
    old = [] if base is None else [each for each in map(base.like, plan.items) if each is not None]
    return None if base is None or len(old) < len(plan.items) else moved(form, symbols, plan.items, old, base)


def _unchanged(origin: PlainModel, base: Base) -> list[tuple[Item, Item]]:
    """The items that the base has, each with the base's."""
    found = []
    for item in origin.layout.items:
        old = base.like(item)
        if old is not None and origin.data(item) == base.source.data(old):
            found.append((item, old))
    return found


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
