"""What the rules work on that find out which channels can be cut, and what has to be cut with them.

    y = f(x), element by element        y has the channels of x, whatever f is
    y = W x                             y has channels of its own; rows and columns of W go with both
    y = x + z                           the channels of x and z go together
    anything that mixes channels        they have to stay
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from onnxcomp.graph.channels.following import Following
from onnxcomp.graph.channels.groups import ChannelSource
from onnxcomp.graph.channels.ids import NONE, ChannelSets, Numbers, padded, trimmed
from onnxcomp.graph.channels.owners import ConstantSlices, Owner, Picks, SlicePart, SplitParts, StatedSize
from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import constant_behind, constant_key, given, has_one_reader, is_onnx, producer
from onnxcomp.graph.ir.reader import Graph

PRODUCTS = frozenset({"conv", "conv_transpose", "linear", "recurrent"})  # kinds of weights that make channels
COUPLED = "joins it with what cannot be cut"
BROADCASTING_OPSET = 7  # from here on Add, Mul, Gemm, ... broadcast as numpy does


class DependencyFlow(Following):
    """Channels that may be cut, and all that owns some of them."""

    verb = "cut"
    needs_zeros = False

    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        super().__init__(graph, shapes, ChannelSets())
        self.slices: list[ConstantSlices] = []
        self.owners: list[Owner] = []  # beside the slices
        self.sources: list[ChannelSource] = []
        self.unfollowed: dict[str, str] = {}  # why products make no channels, by their keys
        self.heads: list[Numbers] = []  # channels that are products side by side

    def give(self, tensor: Any, numbers: Numbers) -> bool:
        if numbers.size == 1:
            self.sets.fix(numbers, f"{tensor.name} has no other channel")
        return super().give(tensor, numbers)

    def stop(self, node: Node) -> None:
        super().stop(node)
        for source in self.sources[-1:]:
            if source.node is node:  # a rule should have stopped before
                self.sets.fix(source.numbers, f"{source.key} ({node.op}) is not followed")
                return
        held = [self.weight_of(node, at) for at in range(len(node.inputs))]
        unknown = self._unknown(node)
        if unknown is not None and any(each is not None and each[0].kind in PRODUCTS for each in held):
            self.unfollowed[self.key(node)] = self._lost_at(unknown)

    def _unknown(self, node: Node) -> Any | None:
        """The first tensor of unknown rank that a node reads, None where it reads none."""
        return next((each for each in node.inputs if each.name and self.rank(each) is None), None)

    def _lost_at(self, tensor: Any) -> str:
        """Where the shapes that lead to a tensor of unknown rank get lost."""
        while (maker := producer(tensor)) is not None and self.scope.graph.holds(maker):
            earlier = self._unknown(maker)
            if earlier is None:
                return f"shapes behind {self.key(maker)} ({maker.op}) are unknown"
            tensor = earlier
        return f"the shape of {tensor.name} is unknown"

    def source(self, node: Node, count: int) -> Numbers:
        """New channels that the node makes."""
        numbers = self.sets.fresh((count,))
        self.sources.append(ChannelSource(self.key(node), node, numbers))
        return numbers

    # --- constants -------------------------------------------------------------------------------------------------

    def seen_shape(self, node: Node, index: int) -> tuple[int, ...] | None:
        """The shape of a constant as the node sees it; None for what is computed or left out."""
        tensor = given(node, index)
        behind = None if tensor is None else constant_behind(tensor, casts=True)
        return None if behind is None else tuple(int(behind.constant.shape[axis]) for axis in behind.perm)

    def takes(self, node: Node, index: int, numbers: Numbers, *, is_read: bool = False) -> None:
        """Note that slices of what a node reads go with channels; where that is no constant that can be cut they are
        fixed. numbers: broadcast against what the node sees."""
        tensor = given(node, index)
        if tensor is None or not self.is_followed(numbers):
            return
        behind = constant_behind(tensor, casts=True)
        if behind is None:
            self.sets.fix(numbers, f"{tensor.name} is no constant")
            return
        constant, path = behind.constant, tuple(_path(tensor))
        reason = self._obstacle(constant, path)
        if reason:
            self.sets.fix(numbers, reason)
            return
        if path:
            rank, numbers = len(behind.perm), trimmed(numbers)
            if numbers.ndim > rank:
                self.sets.fix(numbers, f"{constant.name} is turned before it is added")
                return
            numbers = padded(numbers, rank).transpose(np.argsort(behind.perm))
        reader, at = (producer(path[-1]), 0) if path else (node, index)
        assert reader is not None
        key = self.key(node)
        self.slices.append(ConstantSlices(self.scope, node, key, reader, at, constant, numbers, is_read, path))

    def _obstacle(self, constant: Constant, path: Sequence[Any]) -> str:
        """Why slices of a constant cannot be taken out, "" where they can."""
        if constant_key(self.graph, constant) in self.graph.encodings:
            return f"{constant.name} is on levels, or pruned, already"
        if self.graph.is_output(constant):
            return f"{constant.name} is an output"
        if not all(has_one_reader(self.graph, each) for each in path):
            return f"{constant.name} is shared"
        return ""

    # --- what nodes state ------------------------------------------------------------------------------------------

    def states(self, node: Node, name: str, numbers: Numbers) -> None:
        """Note an attribute that says how many channels (n,) there are."""
        self.owners.append(StatedSize(self.scope, node, name, None, numbers, 0))

    def states_sizes(self, node: Node, index: int, name: str, numbers: Numbers) -> bool:
        tensor, rank = given(node, index), self.rank(node.outputs[0])
        labelled = [axis for axis in range(-numbers.ndim, 0) if numbers.shape[axis] > 1]
        if not is_onnx(node, "Reshape", "Resize", "Expand") or not labelled or (tensor is None and not name):
            return node.op != "Expand" or not labelled
        if rank is None:
            return False
        if tensor is None:
            return self._states_attribute(node, name, numbers, labelled, rank)
        positions = _positions(node, labelled, rank)
        found = [self._stated_at(node, index, at) for at in positions.values()]
        if any(each is None for each in found):
            return False
        for axis, place in zip(positions, found, strict=True):
            assert place is not None
            holder, at, position, value = place
            # 0 copies a size and -1 is worked out; an Expand to 1 leaves the size that there is.
            if value == -1 or (value == 1 and node.op == "Expand"):
                continue
            self.owners.append(StatedSize(self.scope, holder, at, position, numbers, axis))
        return True

    def _states_attribute(self, node: Node, name: str, numbers: Numbers, labelled: list[int], rank: int) -> bool:
        sizes = node.attrs.get(name)
        if not isinstance(sizes, list) or len(sizes) != rank:
            return False
        for axis in labelled:
            if sizes[axis] != -1:
                self.owners.append(StatedSize(self.scope, node, name, axis + rank, numbers, axis))
        return True

    def _stated_at(self, node: Node, index: int, position: int) -> tuple[Node, int, int, int] | None:
        """The node, input and position of the constant number that stands at a position of a list that the node reads,
        and the number; through Concat. None where it is computed."""
        tensor = node.inputs[index]
        if isinstance(tensor, Constant):
            values = np.asarray(tensor.values).reshape(-1)
            return (node, index, position, int(values[position])) if position < values.size else None
        maker = producer(tensor)
        if maker is None or not is_onnx(maker, "Concat") or not self.scope.graph.holds(maker):
            return None
        if not has_one_reader(self.graph, tensor):
            return None  # another node may need another size there
        for at, piece in enumerate(maker.inputs):
            shape = self.shapes.shape(piece)
            if shape is None or len(shape) != 1 or shape[0] is None:
                return None
            if position < shape[0]:
                return self._stated_at(maker, at, position)
            position -= shape[0]
        return None

    def takes_slice(self, node: Node, position: int, axis: int, numbers: Numbers, step: int) -> bool:
        if abs(step) != 1:
            return False
        self.owners.append(SlicePart(self.scope, node, position, axis % numbers.ndim, numbers, step))
        return True

    def takes_parts(self, node: Node, axis: int, parts: list[Numbers]) -> bool:
        if any(not part.shape[axis] for part in parts):
            return False
        self.owners.append(SplitParts(self.scope, node, axis % parts[0].ndim, tuple(parts)))
        return True

    def takes_picks(self, node: Node, axis: int, numbers: Numbers) -> bool:
        if numbers.shape[axis] == 1:
            return True
        positions = node.inputs[1].values
        if positions.ndim > 1:
            return False
        if not positions.ndim:
            picked = np.take(numbers, int(positions) % numbers.shape[axis], axis)
            self.sets.fix(picked, f"{self.key(node)} (Gather) picks it alone")
        self.owners.append(Picks(self.scope, node, axis, numbers))
        return True


Rule = Callable[[DependencyFlow, Node], bool]


def _path(tensor: Any) -> Iterator[Any]:
    """The tensors from what is read back to the first that a node makes of a constant."""
    while not isinstance(tensor, Constant):
        yield tensor
        maker = producer(tensor)
        assert maker is not None
        tensor = maker.inputs[0]


def _positions(node: Node, labelled: list[int], rank: int) -> dict[int, int]:
    """Where the sizes of axes (from the end) stand in the list that a node reads."""
    axes = node.attrs.get("axes") if node.op == "Resize" else None
    if axes is not None:
        stated = [int(axis) % rank for axis in axes]
        return {axis: stated.index(axis + rank) for axis in labelled if axis + rank in stated}
    # An Expand may name fewer axes than there are, and more: the list stands against the last ones.
    length = int(node.inputs[1].shape[0]) if node.op == "Expand" and isinstance(node.inputs[1], Constant) else rank
    return {axis: axis + length for axis in labelled if axis + length >= 0}


# --- operands that are computed, and have channels together ----------------------------------------------------------


def is_computed(node: Node, index: int) -> bool:
    """Whether a node reads something at an input that is no constant."""
    tensor = given(node, index)
    return tensor is not None and constant_behind(tensor, casts=True) is None


def together(flow: DependencyFlow, node: Node, indices: Sequence[int]) -> Numbers | None:
    """The channels that operands have together; None, and nothing done, where it is not known how they broadcast."""
    if flow.scope.opset < BROADCASTING_OPSET and (node.attrs.get("broadcast") or "axis" in node.attrs):
        return None
    computed = [i for i in indices if is_computed(node, i)]
    parts = {i: flow.of(node.inputs[i]) for i in computed}
    if not any(flow.is_followed(each) for each in parts.values()):
        return NONE
    ranks = [flow.rank(node.inputs[i]) for i in indices if given(node, i) is not None]
    if any(rank is None for rank in ranks):
        return None
    rank = max(each or 0 for each in ranks)
    made = joined(flow, node, {i: padded(each, rank) for i, each in parts.items()}, rank)
    for index in indices:
        if index not in parts:
            flow.takes(node, index, made)
    return made


def joined(flow: DependencyFlow, node: Node, parts: dict[int, Numbers], rank: int) -> Numbers:
    """One array of channels for operands that are computed, whose own become the same."""
    labelled = [axis for axis in range(rank) if any(each.shape[axis] > 1 for each in parts.values())]
    found: Numbers | None = None
    for index, numbers in parts.items():
        stated = sizes(flow, node.inputs[index], rank)
        if all(stated[axis] == 1 for axis in labelled):
            continue  # it is broadcast along all axes with channels
        if found is not None:
            flow.sets.join(found, numbers, f"{flow.key(node)} ({node.op}) {COUPLED}")
            found = np.broadcast_to(
                found if found.size >= numbers.size else numbers,
                np.broadcast_shapes(found.shape, numbers.shape),
            )
        else:
            found = numbers
    return NONE if found is None else found


def sizes(flow: DependencyFlow, tensor: Any, rank: int) -> list[int | None]:
    shape = list(flow.shapes.shape(tensor) or ())
    return [*[1] * (rank - len(shape)), *shape]


def as_one(flow: DependencyFlow, node: Node, numbers: Numbers, axis: int) -> Numbers:
    """All channels along an axis go together: one of them stands for all."""
    first: Numbers = np.take(numbers, [0], axis)
    if numbers.shape[axis] > 1:
        flow.sets.join(first, numbers, f"{flow.key(node)} ({node.op}) {COUPLED}")
    return first
