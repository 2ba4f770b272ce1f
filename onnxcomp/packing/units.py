"""What is packed together: parts of large tensors, small tensors of one type, the constants of one weight's codes.

    GAPS        16 MB of what is no tensor's data, the skeleton first
    DATA        an item, or of one above 16 MB the next part
    GROUP       items of one type, one after another as one array
    CODES       the constants that hold the codes of one weight
    SAME        items that are those of the base, which its number says       (deltas only)
    DIFFERENT   items by their difference to those of the base                (deltas only)
    MOVED       the codes of one weight by their difference to the base's     (deltas only)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from onnxcomp.packing.coders.tensor_data import element_bytes
from onnxcomp.packing.container import PART_BYTES
from onnxcomp.packing.layout import FilesLayout, Item
from onnxcomp.packing.recognition import StoredCodes
from onnxcomp.tensors import bits_of

GAPS, DATA, GROUP, CODES, SAME, DIFFERENT, MOVED = range(7)
DELTAS = frozenset({SAME, DIFFERENT, MOVED})
GROUPED_BYTES = 2**10  # items below that many bytes are packed together
GROUP_MOST = 2**18  # bytes of a group


@dataclass(frozen=True)
class ItemPart:
    """A part of an item: from ``start`` to ``stop``, an array of a shape of its own."""

    start: int
    stop: int
    dims: tuple[int, ...]


def parts_of(item: Item) -> list[ItemPart]:
    """The parts in which an item is packed: whole rows where these are not too long."""
    if item.length <= PART_BYTES:
        return [ItemPart(0, item.length, item.dims)]
    row = _row_bytes(item)
    step = PART_BYTES // row * row if 0 < row <= PART_BYTES else PART_BYTES
    found = []
    for start in range(0, item.length, step):
        stop = min(item.length, start + step)
        size = stop - start
        is_rows = row <= step and step % row == 0
        dims = (size // row, *item.dims[1:]) if is_rows else (size // element_bytes(item.data_type),)
        found.append(ItemPart(start, stop, dims))
    return found


def _row_bytes(item: Item) -> int:
    """Bytes of a row of the item; its length where it has no rows of whole bytes."""
    if len(item.dims) < 2 or item.length % item.dims[0] or _bits(item.data_type) < 8:
        return item.length
    return item.length // item.dims[0]


def _bits(data_type: int) -> int:
    try:
        return bits_of(data_type)
    except (ValueError, KeyError, TypeError):
        return 1


def whole_group(items: Sequence[Item]) -> ItemPart:
    """All of a group's array: its length and its shape."""
    length = sum(each.length for each in items)
    return ItemPart(0, length, (length // element_bytes(items[0].data_type),))


@dataclass(frozen=True)
class UnitPlan:
    """A unit to be: its kind and items, the codes that they hold, the part of the one item."""

    kind: int
    items: tuple[Item, ...]
    codes: StoredCodes | None = None
    part: ItemPart | None = None


def plans(layout: FilesLayout, codes: Sequence[StoredCodes], known: Collection[int] = ()) -> Iterator[UnitPlan]:
    """The units of a model's items, by their first items. known: items that need none."""
    by_name: dict[str, list[Item]] = {}
    for item in layout.items:
        by_name.setdefault(item.key.partition(":")[2], []).append(item)
    taken = set(known)
    found: list[UnitPlan] = []
    for each in codes:
        held = [by_name.get(name, []) for name in each.names]
        own = tuple(some[0] for some in held if len(some) == 1)
        if len(own) == len(held) == len(set(own)) and taken.isdisjoint(item.index for item in own):
            taken.update(item.index for item in own)
            found.append(UnitPlan(CODES, own, codes=each))
    rest = [each for each in layout.items if each.index not in taken]
    small = [each for each in rest if each.length < GROUPED_BYTES]
    found += _groups(small)
    for item in rest:
        if item.length >= GROUPED_BYTES:
            found += [UnitPlan(DATA, (item,), part=part) for part in parts_of(item)]
    yield from sorted(found, key=lambda plan: plan.items[0].index)


def _groups(items: Sequence[Item]) -> Iterator[UnitPlan]:
    by_type: dict[int, list[Item]] = {}
    for item in items:
        held = by_type.setdefault(item.data_type, [])
        if held and sum(each.length for each in held) + item.length > GROUP_MOST:
            yield UnitPlan(GROUP, tuple(held))
            held.clear()
        held.append(item)
    for held in by_type.values():
        if held:
            yield UnitPlan(GROUP, tuple(held))


def is_whole(items: Sequence[Item]) -> bool:
    """Whether a group's items are whole elements of one type."""
    sizes = {each.data_type for each in items}
    return len(sizes) == 1 and all(each.length % element_bytes(each.data_type) == 0 for each in items)
