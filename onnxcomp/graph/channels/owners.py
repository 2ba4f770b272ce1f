"""What has to be changed in a model so that channels are gone: everything that holds, counts or names them.

    slices of a constant        a kernel's rows and columns, a bias, a gain, the gates of a recurrent cell
    a size that is stated       the shape of a Reshape, the ``group`` of a convolution, a ``hidden_size``
    a part that is taken        the ends of a Slice, the sizes of a Split, the positions of a Gather
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxcomp.graph.channels.ids import ChannelSets, Numbers
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import given
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import set_constant, set_input
from onnxcomp.graph.provenance import NEW

SPLIT_INPUT_OPSET = 13  # from here on a Split reads its sizes, and a Squeeze its axes
FIRST_POSSIBLE = -(2**31)  # an end that stands before the first element, as exporters write it


class ChannelChange(Protocol):
    """What becomes of channels."""

    def touches(self, numbers: Numbers) -> bool:
        """Whether anything becomes of any of the channels."""

    def taken(self, numbers: Numbers, axis: int) -> Array:
        """Where each index of now stood along an axis before, or NEW."""


class ChannelCut:
    """Which channels are to go, by the sets that they are in."""

    def __init__(self, sets: ChannelSets, units: Numbers) -> None:
        self._sets = sets
        self._gone = np.zeros(sets.count, np.bool_)
        self._gone[sets.roots(units)] = True

    def touches(self, numbers: Numbers) -> bool:
        """Whether any of the channels goes."""
        return bool(self._gone[self._sets.roots(numbers)].any())

    def kept(self, numbers: Numbers, axis: int) -> NDArray[np.bool_]:
        """Which indices of an axis stay: all but those of which every channel goes."""
        gone = np.moveaxis(self._gone[self._sets.roots(numbers)], axis, 0)
        kept: NDArray[np.bool_] = np.logical_not(gone.reshape(gone.shape[0], -1).all(axis=1))
        return kept

    def taken(self, numbers: Numbers, axis: int) -> Array:
        """Which indices of an axis stay."""
        return np.flatnonzero(self.kept(numbers, axis))


class ChannelWidening:
    """So many new channels behind those of one unit, wherever these stand: zeros in every constant."""

    def __init__(self, sets: ChannelSets, unit: int, count: int) -> None:
        self._sets = sets
        self._unit = unit
        self._count = count

    def touches(self, numbers: Numbers) -> bool:
        """Whether the new channels stand behind any of the channels."""
        return bool((self._sets.roots(numbers) == self._unit).any())

    def taken(self, numbers: Numbers, axis: int) -> Array:
        """The indices of an axis, with NEW behind each run of the unit: as long as the run, as often as asked."""
        held = np.moveaxis(self._sets.roots(numbers) == self._unit, axis, 0)
        held = held.reshape(held.shape[0], -1).all(axis=1)
        edges = np.flatnonzero(np.diff(held.astype(np.int8), prepend=0, append=0))
        where = np.repeat(edges[1::2], (edges[1::2] - edges[::2]) * self._count)
        made: Array = np.insert(np.arange(held.size), where, NEW)
        return made


class Owner(Protocol):
    """Something in a model that changes when channels go."""

    @property
    def scope(self) -> Scope: ...

    @property
    def node(self) -> Node: ...

    @property
    def numbers(self) -> Numbers: ...

    def change(self, graph: Graph, change: ChannelChange) -> None:
        """Change it as far as the channels touch it."""


@dataclass(frozen=True, eq=False)
class ConstantSlices:
    """A constant of which slices go with channels.

    reader, index: what reads the constant itself. node: the operator that it serves, key: its name; between both stand
    nodes that turn or cast (``path``: what they make). numbers: broadcast against the constant from the last axis on,
    of more axes than it where others have channels. is_read: the node sums over these channels, so that zeros in these
    slices make it blind to them.
    """

    scope: Scope
    node: Node
    key: str
    reader: Node
    index: int
    constant: Constant
    numbers: Numbers
    is_read: bool = False
    path: tuple[Any, ...] = ()

    def axes(self) -> list[tuple[int, int]]:
        """The constant's axes that have channels, each with that of the numbers."""
        shape, rank = tuple(self.constant.shape), len(self.constant.shape)
        behind = self.numbers.ndim - rank
        pairs = [(axis, axis + behind) for axis in range(rank) if axis + behind >= 0]
        return [(own, theirs) for own, theirs in pairs if shape[own] > 1 and self.numbers.shape[theirs] == shape[own]]

    def taken(self, change: ChannelChange) -> dict[int, Array]:
        """Where each index of now stood before, for each axis of the constant that changes."""
        if not change.touches(self.numbers):
            return {}
        found = {own: change.taken(self.numbers, theirs) for own, theirs in self.axes()}
        return {axis: index for axis, index in found.items() if index.size != self.constant.shape[axis]}


@dataclass(frozen=True, eq=False)
class StatedSize:
    """A whole number of a node that says how many channels there are along an axis of ``numbers``.

    place: an attribute, or the position of an input. position: in a list of such numbers, None for one alone.
    """

    scope: Scope
    node: Node
    place: str | int
    position: int | None
    numbers: Numbers
    axis: int

    def change(self, graph: Graph, change: ChannelChange) -> None:
        if not change.touches(self.numbers):
            return
        count = change.taken(self.numbers, self.axis).size
        if isinstance(self.place, str):
            old = self.node.attrs.get(self.place)
            new: Any = count
            if self.position is not None:
                new = list(old)
                new[self.position] = count
            self.node.attrs[self.place] = new
            return
        values = np.array(self.node.inputs[self.place].values)
        values.reshape(-1)[self.position or 0] = count
        set_constant(graph, self.scope, self.node, self.place, values)


@dataclass(frozen=True, eq=False)
class SlicePart:
    """A Slice along an axis with channels; position: of the axis among those that it names. step: 1 or -1."""

    scope: Scope
    node: Node
    position: int
    axis: int
    numbers: Numbers
    step: int

    def change(self, graph: Graph, change: ChannelChange) -> None:
        if not change.touches(self.numbers):
            return
        size, index = self.numbers.shape[self.axis], change.taken(self.numbers, self.axis)
        part = range(size)[slice(self._stated(0), self._end(size), self.step)]
        if not part:
            return
        behind = np.maximum.accumulate(index)  # what is new belongs to what stands before it
        low, high = (int(each) for each in np.searchsorted(behind, [min(part), max(part) + 1]))
        start, end = (low, high) if self.step > 0 else (high - 1, low - 1 if low else FIRST_POSSIBLE)
        self._state(graph, 0, start)
        self._state(graph, 1, end)

    def _end(self, size: int) -> int | None:
        end = self._stated(1)
        return None if self.step < 0 and end < -size else end

    def _stated(self, which: int) -> int:
        if self.scope.opset < 10:
            return int(self.node.attrs["ends" if which else "starts"][self.position])
        return int(self.node.inputs[1 + which].values.reshape(-1)[self.position])

    def _state(self, graph: Graph, which: int, value: int) -> None:
        if self.scope.opset < 10:
            name = "ends" if which else "starts"
            values = list(self.node.attrs[name])
            values[self.position] = value
            self.node.attrs[name] = values
            return
        own = np.array(self.node.inputs[1 + which].values)
        own.reshape(-1)[self.position] = value
        set_constant(graph, self.scope, self.node, 1 + which, own)


@dataclass(frozen=True, eq=False)
class SplitParts:
    """A Split along an axis with channels; parts: those of each output."""

    scope: Scope
    node: Node
    axis: int
    parts: tuple[Numbers, ...]

    @property
    def numbers(self) -> Numbers:
        return np.concatenate(self.parts, self.axis)

    def change(self, graph: Graph, change: ChannelChange) -> None:
        if not change.touches(self.numbers):
            return
        sizes = [change.taken(part, self.axis).size for part in self.parts]
        if self.scope.opset < SPLIT_INPUT_OPSET:
            self.node.attrs["split"] = sizes
            return
        self.node.attrs.pop("num_outputs", None)
        values: Array = np.array(sizes, np.int64)
        if given(self.node, 1) is not None:
            set_constant(graph, self.scope, self.node, 1, values)
        else:
            set_input(self.node, 1, graph.constant(self.scope, f"{self.node.outputs[0].name}_split", values))


@dataclass(frozen=True, eq=False)
class Picks:
    """A Gather of channels along an axis by positions that are constant."""

    scope: Scope
    node: Node
    axis: int
    numbers: Numbers

    def change(self, graph: Graph, change: ChannelChange) -> None:
        if not change.touches(self.numbers):
            return
        positions = np.asarray(self.node.inputs[1].values)
        wrapped, index = positions % self.numbers.shape[self.axis], change.taken(self.numbers, self.axis)
        found = np.searchsorted(np.maximum.accumulate(index), wrapped)
        if positions.ndim:
            found = _picked(found, change.taken(np.take(self.numbers, wrapped, self.axis), self.axis))
        set_constant(graph, self.scope, self.node, 1, found.astype(positions.dtype))


def _picked(found: Array, taken: Array) -> Array:
    """The positions that a Gather picks now. found: where what each of its picks took stands now. taken: what becomes
    of its picks; a new one is the next behind the place of the pick before it."""
    behind = np.maximum.accumulate(taken)
    made: Array = found[behind] + np.arange(taken.size) - np.searchsorted(behind, behind)
    return made
