"""Find every weight of a model, wherever it is kept, and the role it has at each node that reads it.

A weight is a constant float tensor: an initializer, a Constant node, in the main graph, a subgraph or a
function. Readers are followed through Identity, Cast, Transpose, Reshape, Squeeze, Unsqueeze and Flatten;
axes are given in the constant's own order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.ir.nodes import Array, Constant, Node, ProtoValues
from onnxcomp.graph.ir.query import constants_by_key, is_onnx
from onnxcomp.graph.ir.reader import Graph, Scope, close_graph, open_graph
from onnxcomp.graph.stored.opening import open_plain, stored_bytes
from onnxcomp.model import INLINE_LIMIT_BYTES, Model
from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.operators import MICROSOFT, RECURRENT, RESHAPING
from onnxcomp.tensors import FLOAT_TYPES

SEE_THROUGH = RESHAPING | {"Identity", "Cast", "Transpose"}

Axes = tuple[int, ...] | None  # position in the tensor that is read -> axis of the constant; None: unknown


@dataclass(frozen=True, eq=False)
class Role:
    """What a weight is to one node.

    kind: "conv", "conv_transpose", "linear", "embedding", "recurrent", "bias" or "other".
    channel_axis: the constant's axis of the node's output channels (embedding: of the rows), None if unknown.
    input_axis: the constant's axis that is summed over, None if unknown or if there is none.
    direct: the node reads the constant itself, not a reshaped or cast form of it.
    axes: for each axis that the node sees, the constant's; None where a reshape stands between.
    """

    kind: str
    node: Node
    input_index: int
    channel_axis: int | None = None
    input_axis: int | None = None
    direct: bool = True
    axes: Axes = None


@dataclass(eq=False)
class Weight:
    """A constant float tensor with all its roles. ``name`` is unique in the model.

    keeps_codes: whether the codes that ``set`` finds are kept for ``codes``, a byte or two for each value.
    """

    name: str
    tensor: Constant
    scope: Scope
    graph: Graph
    roles: list[Role] = field(default_factory=list)
    keeps_codes: bool = False
    _codes: Array | None = field(default=None, repr=False)

    @property
    def values(self) -> Array:
        """The values, read-only; large ones are mapped from disk."""
        return self.tensor.values

    def set(self, values: Array, encoding: Encoding | None = None) -> None:
        """Give the weight other values of the same shape and type, and say how they are made.

        ValueError where shape or type differ, or where the encoding does not make these very values.
        """
        refuse_misfit(self.name, values, self.shape, self.dtype)
        codes = None if encoding is None else encoding.encode(values)
        if encoding is not None and codes is None:
            raise ValueError(f"{self.name}: the {encoding.kind} encoding does not decode to the values")
        self.tensor.values = values
        self._codes = codes if self.keeps_codes else None
        if encoding is None:
            self.graph.encodings.pop(self.name, None)
        else:
            self.graph.encodings[self.name] = encoding

    @property
    def encoding(self) -> Encoding | None:
        """How the values are made, as far as a pass said so."""
        return self.graph.encodings.get(self.name)

    def codes(self) -> Array | None:
        """The codes of the encoding that make the values, None where it has none that do."""
        if self._codes is not None:
            return self._codes
        encoding = self.encoding
        return None if encoding is None else encoding.encode(np.asarray(self.values))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.tensor.dtype)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file, fewer where a decoder makes the values."""
        return min(self.size_bytes, stored_bytes(self.tensor))

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of all roles."""
        return frozenset(role.kind for role in self.roles)

    @property
    def channel_axis(self) -> int | None:
        """The output channel axis that all roles agree on, or None."""
        return _agreed(role.channel_axis for role in self.roles)

    @property
    def input_axis(self) -> int | None:
        """The summed axis that all roles agree on, or None."""
        return _agreed(role.input_axis for role in self.roles)

    @property
    def node_names(self) -> tuple[str, ...]:
        """The names of the nodes that read it, for excluding by node."""
        return tuple(role.node.name for role in self.roles if role.node.name)


def weights(graph: Graph, *, min_size: int = 2) -> list[Weight]:
    """The weights that a value pass may change: float, two or more dimensions, read by some node.

    Biases and other vectors are not among them (their bytes are few and their errors dear), nor is a
    tensor that is a graph output itself.
    """
    found = []
    for scope in graph.scopes:
        for constant in scope.constants:
            if constant.data_type not in FLOAT_TYPES or len(constant.shape) < 2 or constant.size < min_size:
                continue
            if graph.is_output(constant):
                continue
            roles = list(_roles(graph, constant, tuple(range(len(constant.shape))), True))
            if roles and any(role.kind != "bias" for role in roles):
                found.append(Weight(scope.key(constant.name), constant, scope, graph, roles))
    return found


def roles_of(graph: Graph, tensor: Any, rank: int) -> list[Role]:
    """The roles of any tensor at the nodes that read it, axes in its own order."""
    return list(_roles(graph, tensor, tuple(range(rank)), True))


def with_weights(base: Model, made: Mapping[str, tuple[Array | ProtoValues, Encoding | None]]) -> Model:
    """``base`` with other values and encodings of the named weights, each asked for once, in turn."""
    if not made:
        return base
    graph = open_plain(base)
    for name, own in constants_by_key(graph).items():
        if name in made:
            values, encoding = made[name]
            own.values = values
            del values  # which may be on disk by now
            graph.encodings.pop(name, None)
            if encoding is not None:
                graph.encodings[name] = encoding
    return close_graph(graph)


def compose(base: Model, sources: Mapping[str, Model]) -> Model:
    """``base`` with the named weights' values and encodings taken from other models of the same structure.

    This is how a value pass is taken back, weight by weight: the old array is put back.
    """
    opened = {id(each): open_plain(each) for each in sources.values()}
    constants = {key: constants_by_key(each) for key, each in opened.items()}
    made = {}
    for name, source in sources.items():
        if name in constants[id(source)]:
            made[name] = constants[id(source)][name]._values, opened[id(source)].encodings.get(name)
    return with_weights(base, made)


def with_arrays(base: Model, values: Mapping[str, Array]) -> Model:
    """``base`` with the named constants holding other values of the same shape and type, however these are made.

    Few of them stay in memory: the model is not meant to be kept. Raises ValueError for what does not fit.
    """
    graph = open_plain(base)
    held = constants_by_key(graph)
    in_memory = sum(each.nbytes for each in values.values()) < INLINE_LIMIT_BYTES
    for name, array in values.items():
        own = held.get(name)
        if own is None:
            raise ValueError(f"{name}: the model has no such constant")
        refuse_misfit(name, array, tuple(own.shape), own.dtype)
        if in_memory:
            own._values, own.origin = np.asarray(array), None
        else:
            own.values = array
        graph.encodings.pop(name, None)
    return close_graph(graph)


def refuse_misfit(name: str, values: Array, shape: tuple[int, ...], dtype: Any) -> None:
    """Raise ValueError where values are of another shape or type than the constant whose they shall be."""
    if values.shape != shape or values.dtype != dtype:
        raise ValueError(f"{name}: {values.shape} {values.dtype} for {shape} {dtype}")


def with_true_encodings(model: Model) -> Model:
    """The model without encodings that do not make their weights' values; the model itself where all do.

    Another tool may have changed weights and kept the note of how they were made.
    """
    if not model.encodings:
        return model
    graph = open_graph(model)
    held = constants_by_key(graph)
    true = {key: each for key, each in graph.encodings.items() if each.encode(held[key].values) is not None}
    return model if len(true) == len(model.encodings) else model.with_proto(model.proto, true)


def _agreed(values: Iterable[int | None]) -> int | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _roles(graph: Graph, tensor: Any, axes: Axes, direct: bool) -> Iterator[Role]:
    """The roles of a tensor, following it through nodes that only change its form."""
    seen: set[tuple[int, int]] = set()
    for node in list(tensor.outputs):
        for index, read in enumerate(node.inputs):
            if read is not tensor or (id(node), index) in seen:
                continue
            seen.add((id(node), index))
            if is_onnx(node, *SEE_THROUGH) and index == 0 and not graph.is_output(node.outputs[0]):
                yield from _roles(graph, node.outputs[0], _axes_after(node, axes, len(tensor.shape or ())), False)
            else:
                yield _role(node, index, axes, direct)


def _axes_after(node: gs.Node, axes: Axes, rank: int) -> Axes:
    if axes is None or node.op in ("Identity", "Cast"):
        return axes
    if node.op == "Transpose":
        order = node.attrs.get("perm") or list(range(len(axes)))[::-1]
        return tuple(axes[position] for position in order)
    return None


def _role(node: Node, index: int, axes: Axes, direct: bool) -> Role:
    kind, channel, summed = place_of(node, index, None if axes is None else len(axes))
    return Role(kind, node, index, _axis(axes, channel), _axis(axes, summed), direct, axes)


def _axis(axes: Axes, position: int | None) -> int | None:
    return None if axes is None or position is None else axes[position]


def place_of(node: gs.Node, index: int, rank: int | None) -> tuple[str, int | None, int | None]:
    """What a node takes its input at ``index`` for: the kind of a role, the axis of the output channels and the one
    that is summed over, by the operator's specification; None where there is none, or ``rank`` tells too little."""
    if not is_onnx(node) and node.domain != MICROSOFT:
        return "other", None, None
    match node.op, index:
        case (("Conv" | "FusedConv"), 1):
            return "conv", 0, 1
        case "ConvTranspose", 1:
            return "conv_transpose", 1 if node.attrs.get("group", 1) == 1 else 0, 0
        case (("Conv" | "FusedConv" | "ConvTranspose" | "Gemm"), 2):
            return "bias", None, None
        case "Gemm", 0:
            return "linear", *((1, 0) if node.attrs.get("transA", 0) else (0, 1))
        case "Gemm", 1:
            return "linear", *((0, 1) if node.attrs.get("transB", 0) else (1, 0))
        case "MatMul", 0 if rank is not None and rank >= 2:
            return "linear", rank - 2, rank - 1
        case "MatMul", 1 if rank is not None and rank >= 2:
            return "linear", rank - 1, rank - 2
        case "FusedMatMul", 1 if rank == 2:
            return "linear", *((0, 1) if node.attrs.get("transB", 0) else (1, 0))
        case "MatMul", _:
            return "linear", None, None
        case "Gather", 0:
            axis = int(node.attrs.get("axis", 0))
            return "embedding", axis if axis >= 0 or rank is None else axis + rank, None
        case _, (1 | 2) if node.op in RECURRENT:
            return "recurrent", 1, 2
        case _, 3 if node.op in RECURRENT:
            return "bias", None, None
    return "other", None, None
