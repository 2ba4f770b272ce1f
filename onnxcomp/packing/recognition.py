"""Which constants of a model together hold the codes of one weight, and how: read from the decoders of store-compact.

    Reshape(Gather(book[digits], Cast(bytes)))                        dense: every element's code, several in a byte
    Gather([default, pool], CumSum(bits) * bits)                      masked: a bit each, codes where it is set
    ScatterElements(base, CumSum(steps), updates)                     excepted: distances, and the codes put there

What is found here is a guess that costs nothing where it is wrong: whoever uses it makes the bytes again and compares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.errors import ModelError
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import producer
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.stored.decoding import Decoders
from onnxcomp.graph.stored.forms import decoded_form
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.packing import MAX_BITS, BitLayout

FORMS = frozenset({"Reshape", "Slice", "Cast", "Flatten"})
SCALINGS = frozenset({"Mul", "Add", "Sub"})
DEEPEST = 64  # steps from a weight to its codes; no decoder has as many


@dataclass(frozen=True)
class Planes:
    """Packed codes: the names of their planes, the low one first, and the layout."""

    names: tuple[str, ...]
    layout: BitLayout


@dataclass(frozen=True)
class StoredCodes:
    """Where the codes of one weight lie.

    shape: of the codes. values: packed codes of all elements, of those under the mask, or of the exceptions. mask: the
    name of the bits. steps: the packed distances of the exceptions. base: packed codes that the exceptions stand over,
    None where all others are one level. book: the values of the codes, that of the masked ones first; () if not known.
    """

    shape: tuple[int, ...]
    values: Planes
    mask: str | None = None
    steps: Planes | None = None
    base: Planes | None = None
    book: tuple[float, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The constants that hold the codes."""
        rest = tuple(name for each in (self.steps, self.base) if each is not None for name in each.names)
        return (*self.values.names, *((self.mask,) if self.mask is not None else ()), *rest)


def stored_codes(model: Model) -> Iterator[StoredCodes]:
    """The codes of every weight of the model that a decoder makes, as far as they are told by its nodes."""
    try:
        decoders = Decoders(open_graph(model))
        ends = list(decoders.outputs())
    except (ModelError, ValueError, KeyError, IndexError, TypeError):
        return  # a model that is packed byte by byte
    for _, node in ends:
        try:
            found = _Path(decoders).of(node)
        except (ValueError, IndexError, TypeError, KeyError):
            continue
        if found is not None:
            yield found


class _Path:
    """The way from what a decoder makes back to its codes."""

    def __init__(self, decoders: Decoders) -> None:
        self.decoders = decoders

    def of(self, node: Node) -> StoredCodes | None:
        """The codes behind a decoder's last node."""
        shapes = []
        for _ in range(DEEPEST):
            if node.op == "Transpose":
                shapes = [self._shape(node.inputs[0])]
            elif node.op in FORMS or node.op in SCALINGS:
                shapes.append(self._shape(node.outputs[0]))
            else:
                break
            above = producer(max(node.inputs, key=lambda each: math.prod(self._shape(each))))
            if above is None:
                return None
            node = above
        return self._codes(node, (shapes or [self._shape(node.outputs[0])])[0])

    def _codes(self, node: Node, shape: tuple[int, ...]) -> StoredCodes | None:
        if node.op == "Gather":
            bits = self._mask_of(node.inputs[1])
            if bits is not None:
                joined = producer(node.inputs[0])
                if joined is None or joined.op != "Concat" or (pool := self._planes(joined.inputs[1])) is None:
                    return None
                book = (*self._book(joined.inputs[0], 1), *self._book(joined.inputs[1], pool.layout.levels))
                return StoredCodes(shape, pool, mask=bits, book=book)
            planes = self._planes(node.outputs[0])
            book = () if planes is None else self._book(node.outputs[0], planes.layout.levels)
            return None if planes is None else StoredCodes(shape, planes, book=book)
        if node.op in ("ScatterElements", "Scatter"):
            base = producer(node.inputs[0])
            steps = self._planes(self._under(node.inputs[1], ("CumSum", "Slice", "Flatten", "Reshape")))
            values = self._planes(node.inputs[2])
            if base is None or steps is None or values is None:
                return None
            under = None if base.op == "ConstantOfShape" else self._planes(node.inputs[0])
            if under is None and base.op != "ConstantOfShape":
                return None
            book = self._book(node.inputs[2], values.layout.levels)
            return StoredCodes(shape, values, steps=steps, base=under, book=book)
        return None

    def _book(self, tensor: Any, levels: int) -> tuple[float, ...]:
        """The values that the codes behind a lookup stand for; () where they are vectors, or fewer."""
        node = producer(self._under(tensor, ("Reshape", "Flatten", "Slice")))
        if node is not None and node.op == "Gather":
            made = producer(node.inputs[0])
            tensor = made.inputs[0] if made is not None and made.op == "Gather" else node.inputs[0]
        values = self.decoders.value(tensor)
        if values.ndim == 2 and values.shape[1] > 1 and len(values) >= levels:
            values = values[:, -1:]  # the last digit of an index counts up first
        flat = values.reshape(-1)
        return tuple(map(float, flat[:levels])) if flat.size >= levels and values.size == len(values) else ()

    def _mask_of(self, index: Any) -> str | None:
        """The constant of the bits, where the index is their sum so far times themselves."""
        product = producer(index)
        if product is None or product.op != "Mul":
            return None
        added = [each for each in map(producer, product.inputs) if each is not None and each.op == "CumSum"]
        if len(added) != 1:
            return None
        planes = self._planes(added[0].inputs[0])
        return planes.names[0] if planes is not None and planes.layout == BitLayout(2, 8, 8) else None

    def _under(self, tensor: Any, passed: tuple[str, ...]) -> Any:
        """The tensor behind nodes that change its form, or sum it."""
        while (node := producer(tensor)) is not None and node.op in passed:
            tensor = node.inputs[0]
        return tensor

    def _planes(self, tensor: Any) -> Planes | None:
        """The packed codes that a lookup starts from."""
        node = producer(self._under(tensor, ("Reshape", "Flatten", "Slice")))
        if node is None or node.op != "Gather":
            return None
        names = self._plane_names(node.inputs[1])
        if not names:
            return None
        made = producer(node.inputs[0])
        if made is not None and made.op == "Gather":  # a book at the digits of every index
            digits = self.decoders.value(made.inputs[1])
        else:
            digits = _digits_of(self.decoders.value(node.inputs[0]))
        bits = _bits(names, digits)
        return None if bits is None else Planes(tuple(names), BitLayout(int(digits.max()) + 1, digits.shape[1], bits))

    def _plane_names(self, index: Any) -> list[str]:
        """The constants that an index is put together from, the lowest bits first; none where it is something else."""
        node = producer(self._under(index, ("Reshape", "Flatten")))
        if node is not None and node.op == "Cast" and isinstance(node.inputs[0], Constant):
            return [str(node.inputs[0].name)]
        if node is None or node.op != "Add":
            return []
        below = self._plane_names(node.inputs[0])
        part = producer(self._under(node.inputs[1], ("Reshape", "Flatten")))
        above = self._plane_names(part.inputs[1]) if part is not None and part.op == "Gather" else []
        return [*below, *above] if below and above else []

    def _shape(self, tensor: Any) -> tuple[int, ...]:
        shape, _ = decoded_form(tensor, self.decoders.value)
        return tuple(shape)


def _digits_of(table: Any) -> Any:
    """(rows, g) the digits of every index, by the (rows, g) or (rows,) values that a table has for it."""
    if table.ndim == 2 and np.issubdtype(table.dtype, np.integer):
        return table
    if table.ndim < 2:
        return np.arange(len(table))[:, None]  # one code to an index
    group = table.shape[1]
    most = max(each for each in range(2, len(table) + 1) if each**group <= len(table))
    for levels in range(most, 1, -1):
        digits = np.arange(len(table))[:, None] // levels ** np.arange(group - 1, -1, -1) % levels
        if np.array_equal(table[:levels, -1][digits], table):
            return digits
    return np.arange(len(table))[:, None]


def _bits(names: list[str], digits: Any) -> int | None:
    """The bits of an index that is looked up in the digits."""
    bits = max(8, (len(digits) - 1).bit_length())
    return bits if bits <= MAX_BITS and (len(names) > 1 or bits in (8, MAX_BITS)) else None
