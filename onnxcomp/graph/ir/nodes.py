"""onnx-graphsurgeon's IR with identity instead of name comparison, lazily read values, and the original proto.

graphsurgeon compares tensors by name and nodes by content, which confuses equal names in sibling
subgraphs and makes every edit slow; here an object equals itself only. ``origin`` is what the object was
read from: what no pass touched is written back from it, to the bit.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import NodeProto, SparseTensorProto, TensorProto, helper
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.util.misc import SynchronizedList

from onnxcomp.model import Model
from onnxcomp.tensors import is_mapped, lent, read_tensor

Array = NDArray[Any]


def _linked(owner: Any, field: str, elements: Collection[Any] = ()) -> SynchronizedList:
    """The list of a node's tensors, or of a tensor's nodes; each element has the owner in its own list."""
    made = SynchronizedList.__new__(SynchronizedList)
    made.parent_obj, made.field_name = owner, field
    if elements:
        list.extend(made, elements)
        for each in made:
            list.append(vars(each)[field], owner)
    return made


class Node(gs.Node):  # type: ignore[misc]
    """A node; ``origin`` is the NodeProto that it was read from, None for a new one."""

    origin: NodeProto | None = None
    leading: tuple[Constant, ...] = ()  # Constant nodes that stood just before it
    was_dead: bool = False  # nothing read its outputs when the graph was opened

    def __init__(
        self,
        op: str,
        name: str = "",
        attrs: dict[str, Any] | None = None,
        inputs: Collection[Any] = (),
        outputs: Collection[Any] = (),
        domain: str | None = None,
    ) -> None:
        self.__dict__.update(  # past graphsurgeon's __setattr__, which looks each name up first
            op=op,
            name=name,
            attrs=OrderedDict() if attrs is None else attrs,
            inputs=_linked(self, "outputs", inputs),
            outputs=_linked(self, "inputs", outputs),
            domain=domain,
        )

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Body(gs.Graph):  # type: ignore[misc]
    """A graph that takes each node out or in at once, and orders them when ``nodes`` is asked for.

    The list that ``nodes`` gives is not to be changed; another one may be set.
    """

    def __init__(self, *, name: str, opset: int) -> None:
        self._nodes: list[Node] = []
        self._own: set[Node] = set()
        self._before: dict[Node, list[Node]] = {}
        self._has_lost = False
        super().__init__(name=name, opset=opset)

    @property
    def nodes(self) -> list[Node]:
        """The nodes in order."""
        if self._has_lost or self._before:
            self._settle()
        return self._nodes

    @nodes.setter
    def nodes(self, nodes: list[Node]) -> None:
        self._nodes, self._own = nodes, set(nodes)
        self._before.clear()
        self._has_lost = False

    def holds(self, node: Node) -> bool:
        """Whether the node is one of this graph, not of one around it or inside."""
        return node in self._own

    def put(self, node: Node, before: Node | None = None) -> None:
        """Put a node in, right before another one; at the end where that is None or not one of the nodes."""
        if before in self._own:
            self._before.setdefault(before, []).append(node)
        else:
            self._nodes.append(node)
        self._own.add(node)

    def take_out(self, node: Node) -> None:
        """Take a node out."""
        self._own.discard(node)
        self._has_lost = True

    def _settle(self) -> None:
        made: list[Node] = []
        for each in self._nodes:
            self._emit(each, made)
        self._nodes = [each for each in made if each in self._own]
        self._has_lost = False

    def _emit(self, node: Node, made: list[Node]) -> None:
        for each in self._before.pop(node, ()):
            self._emit(each, made)
        made.append(node)


class Variable(gs.Variable):  # type: ignore[misc]
    """A tensor computed at run time; ``origin`` is its ValueInfoProto, None where nothing states its type."""

    origin: Any = None

    def __init__(
        self, name: str, dtype: Any = None, shape: Sequence[int | str | None] | None = None, type: str = "tensor_type"
    ) -> None:
        self.__dict__.update(
            name=name,
            inputs=_linked(self, "outputs"),
            outputs=_linked(self, "inputs"),
            dtype=dtype,
            shape=shape,
            type=type,
        )

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class ProtoValues(LazyValues):  # type: ignore[misc]
    """Values that are read from a TensorProto (or SparseTensorProto) each time they are asked for."""

    tensor: TensorProto | SparseTensorProto | None

    def __init__(self, tensor: TensorProto | SparseTensorProto, model: Model) -> None:
        self.tensor = tensor
        self.model = model
        self.shape = tuple(tensor.dims)
        self.data_type = tensor.values.data_type if isinstance(tensor, SparseTensorProto) else tensor.data_type
        self.dtype = helper.tensor_dtype_to_np_dtype(self.data_type)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> Array:
        """The values; mapped from disk where they are external."""
        if isinstance(self.tensor, SparseTensorProto):
            return _dense(self.tensor, self.model)
        assert self.tensor is not None
        return self.model.read(self.tensor)


class Constant(gs.Constant):  # type: ignore[misc]
    """A tensor known before run time: an initializer, or a Constant node (``node_origin``).

    ``values`` reads lazily and keeps nothing in memory; setting it spills large arrays to the scratch folder.
    """

    origin: TensorProto | SparseTensorProto | None = None
    node_origin: NodeProto | None = None
    node_values: ProtoValues | None = None  # what the Constant node held when it was read
    as_node: bool = False
    was_used: bool = False
    model: Model

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(self, name: str, values: Array | ProtoValues, model: Model) -> None:
        self.__dict__.update(
            name=name,
            inputs=_linked(self, "outputs"),
            outputs=_linked(self, "inputs"),
            data_location=None,
            export_dtype=None,
            model=model,
        )
        self.values = values

    @property
    def values(self) -> Array:
        """The values, read-only; for a sub-byte or 8-bit float type in ml_dtypes' dtype."""
        held = self._values
        return held.load() if isinstance(held, ProtoValues) else held

    @values.setter
    def values(self, values: Array | ProtoValues) -> None:
        if isinstance(values, np.ndarray) and not is_mapped(values) and self.model.scratch.takes(values.nbytes):
            values = lent(values, self.model.scratch)
        self._values = values
        self.origin = values.tensor if isinstance(values, ProtoValues) else None

    @property
    def data_type(self) -> int:
        """The ONNX element type."""
        held = self._values
        return held.data_type if isinstance(held, ProtoValues) else helper.np_dtype_to_tensor_dtype(held.dtype)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values in memory."""
        return int(self._values.nbytes)

    def __str__(self) -> str:
        return f"Constant ({self.name}): (shape={self.shape}, dtype={self.dtype})"

    __repr__ = __str__


def _dense(sparse: SparseTensorProto, model: Model) -> Array:
    """A sparse tensor as a dense array; indices are linear (NNZ) or per dimension (NNZ, rank)."""
    values = read_tensor(sparse.values, model.folder)
    indices = read_tensor(sparse.indices, model.folder)
    shape = tuple(sparse.dims)
    dense = np.zeros(math.prod(shape), values.dtype)
    linear = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
    dense[linear] = values
    return dense.reshape(shape)
