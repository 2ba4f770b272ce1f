"""Write formulas as nodes: the constant ``W`` becomes a run-time tensor ``W`` that standard operators compute.

    W = constant   ->   W = Reshape(Gather(table, Cast(bytes)), shape)

Every reader stays as it is. ONNX Runtime computes such nodes once, when the session is created. Tables that do
not depend on the weight, and small constants that are equal, are written once in the outermost scope.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxcomp.errors import PassError
from onnxcomp.graph.ir import Constant, Node
from onnxcomp.graph.surgery import Graph, Scope
from onnxcomp.numerics.formula import (
    Apply,
    Array,
    Literal,
    Term,
    binary,
    cast,
    counting,
    first,
    literal,
    reshape,
)

INTERNED_BYTES = 64  # literals up to this size are written once for all that are equal
MIN_OPSET = 7  # broadcasting
RANGE_OPSET, MOD_OPSET, SLICE_INPUTS_OPSET = 11, 10, 10
NAME_BYTES = 3  # of the names that new tensors get, as long as they are few
CONSTANT_NODE_BYTES = 30  # around the tensor of a Constant node
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, eq=False)
class Operation:
    """One node to be: operator, data inputs (terms), small integer inputs (arrays) behind them, attributes."""

    op: str
    inputs: tuple[Term, ...]
    constants: tuple[Array, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)


def operation(term: Apply, opset: int) -> Operation:
    """The node that computes the term's last step at this opset."""
    attrs = term.attrs
    match term.op:
        case "Cast":
            return Operation("Cast", term.inputs, attrs={"to": helper.np_dtype_to_tensor_dtype(attrs["to"])})
        case "Reshape":
            return Operation("Reshape", term.inputs, (np.array(attrs["shape"], np.int64),))
        case "Slice" if opset >= SLICE_INPUTS_OPSET:
            return Operation("Slice", term.inputs, (np.array([0], np.int64), np.array([attrs["end"]], np.int64)))
        case "Slice":
            return Operation("Slice", term.inputs, attrs={"starts": [0], "ends": [attrs["end"]]})
        case "Transpose":
            return Operation("Transpose", term.inputs, attrs={"perm": list(attrs["axes"])})
        case "Concat":
            return Operation("Concat", term.inputs, attrs={"axis": 0})
        case "CumSum":
            return Operation("CumSum", term.inputs, (np.array(0, np.int32),))
        case "ConstantOfShape":
            value = np.asarray(attrs["value"]).reshape(1)
            return Operation("ConstantOfShape", (), (np.array(attrs["shape"], np.int64),), {"value": value})
        case "Range":
            limits = (np.array(0, np.int32), np.array(attrs["limit"], np.int32), np.array(1, np.int32))
            return Operation("Range", (), limits)
    return Operation(term.op, term.inputs)


def lowered(term: Term, opset: int) -> Term:
    """A term that the opset has no operator for, put in older ones."""
    if not isinstance(term, Apply):
        return term
    if term.op == "Mod" and opset < MOD_OPSET:
        left, right = term.inputs
        return binary("Sub", left, binary("Mul", binary("Div", left, right), right))
    if term.op == "Range" and opset < RANGE_OPSET:
        rows = term.attrs["limit"]
        if rows <= 256:
            return cast(literal(np.arange(rows, dtype=np.uint8)), np.int32)
        high = binary("Mul", reshape(first(counting(256), rows // 256), (rows // 256, 1)), literal(256, np.int32))
        return reshape(binary("Add", high, counting(256)), (rows,))
    return term


def root_of(scope: Scope) -> Scope:
    """The outermost scope around this one: the main graph or a function's body."""
    while scope.parent is not None:
        scope = scope.parent
    return scope


class Writer:
    """Writes formulas into the scopes of one root (the main graph or a function's body, and what is inside)."""

    def __init__(self, graph: Graph, root: Scope) -> None:
        self.graph = graph
        self.root = root  # where shared tables go
        self._shared: dict[Hashable, Any] = {}
        self._made: dict[int, tuple[Term, Any]] = {}  # the terms too, so that no id is used twice
        self._nodes: dict[int, tuple[Scope, list[Node]]] = {}
        self._count = 0

    def replace(self, scope: Scope, constant: Constant, term: Term) -> None:
        """Compute the scope's constant by the term from now on; its readers do not notice."""
        if not isinstance(term, Apply) or term.shape != tuple(constant.shape) or term.dtype != constant.dtype:
            raise PassError(f"{constant.name}: a decoder of {term.dtype} {term.shape} cannot stand for {constant}.")
        self._node(term, scope, self.graph.to_variable(constant))
        self._made.clear()

    def finish(self) -> None:
        """Put the new nodes before all others of their scopes."""
        for scope, nodes in self._nodes.values():
            scope.graph.nodes = [*nodes, *scope.graph.nodes]
        self._nodes.clear()

    def _tensor(self, term: Term, scope: Scope) -> Any:
        key = term.key if isinstance(term, Apply) else None
        if key is not None and key in self._shared:
            return self._shared[key]
        if id(term) in self._made:
            return self._made[id(term)][1]
        simple = lowered(term, self.root.opset)
        if isinstance(simple, Apply):
            tensor = self.graph.variable(self._name(), term.dtype, list(term.shape))
            self._node(simple, self.root if key is not None else scope, tensor)
        else:
            assert isinstance(simple, Literal)
            tensor = self._literal(simple.make(), scope)
        self._made[id(term)] = (term, tensor)
        if key is not None:
            self._shared[key] = tensor
        return tensor

    def _node(self, term: Apply, scope: Scope, output: Any) -> None:
        """Add the node that computes the term after those that it needs."""
        step = operation(term, self.root.opset)
        inputs = [self._tensor(each, scope) for each in step.inputs]
        inputs += [self._literal(each, scope) for each in step.constants]
        nodes = self._nodes.setdefault(id(scope), (scope, []))[1]
        nodes.append(Node(step.op, "", OrderedDict(step.attrs), inputs, [output], None))

    def _literal(self, values: Array, scope: Scope) -> Any:
        if values.nbytes > INTERNED_BYTES:
            return self.graph.constant(scope, self._name(), values)
        key = _content_key(values)
        if key not in self._shared:
            self._shared[key] = self.graph.constant(self.root, self._name(), values)
        return self._shared[key]

    def _name(self) -> str:
        """A short name that nothing in the model has."""
        while True:
            number, name = self._count, ""
            self._count += 1
            while number or not name:
                number, digit = divmod(number, len(LETTERS))
                name = LETTERS[digit] + name
            if self.graph.is_free("_" + name):
                return "_" + name


def _content_key(values: Array) -> Hashable:
    return ("literal", str(values.dtype), values.shape, values.tobytes())


# --- what it costs -----------------------------------------------------------------------------------------


@dataclass
class Cost:
    """Bytes of the serialized model: the decoder's own, and those of each shared part by its key."""

    own: int = 0
    shared: dict[Hashable, int] = field(default_factory=dict)
    peak_output: int = 0  # the largest tensor that is computed on the way

    def total(self, present: Container[Hashable]) -> int:
        """The bytes that the decoder adds to a model that has these shared parts already."""
        return self.own + sum(size for key, size in self.shared.items() if key not in present)


def cost_of(term: Term, root: Scope) -> Cost:
    """What writing the term takes, counted as protobuf does, without making its data."""
    cost = Cost()
    _add_cost(term, root, cost, None, set())
    return cost


def _add_cost(term: Term, root: Scope, cost: Cost, owner: Hashable | None, seen: set[int]) -> None:
    key = term.key if isinstance(term, Apply) else None
    if id(term) in seen or (key is not None and key in cost.shared):
        return
    seen.add(id(term))
    if key is not None:
        owner = key
        cost.shared[key] = 0
    simple = lowered(term, root.opset)
    if isinstance(simple, Literal):
        if simple.nbytes <= INTERNED_BYTES:
            cost.shared.setdefault(_content_key(simple.make()), tensor_bytes(simple.shape, simple.nbytes, root))
        else:
            _charge(cost, owner, tensor_bytes(simple.shape, simple.nbytes, root))
        return
    assert isinstance(simple, Apply)
    cost.peak_output = max(cost.peak_output, simple.nbytes)
    step = operation(simple, root.opset)
    _charge(cost, owner, _node_bytes(step))
    for values in step.constants:
        cost.shared.setdefault(_content_key(values), tensor_bytes(values.shape, values.nbytes, root))
    for each in step.inputs:
        _add_cost(each, root, cost, owner, seen)


def _charge(cost: Cost, owner: Hashable | None, size: int) -> None:
    if owner is None:
        cost.own += size
    else:
        cost.shared[owner] += size


def _node_bytes(step: Operation) -> int:
    name = "x" * NAME_BYTES
    proto = NodeProto(op_type=step.op, input=[name] * (len(step.inputs) + len(step.constants)), output=[name])
    for key, value in step.attrs.items():
        if isinstance(value, np.ndarray):
            value = numpy_helper.from_array(value)
        proto.attribute.append(helper.make_attribute(key, value))
    return _framed(proto.ByteSize())


def tensor_bytes(shape: Sequence[int], nbytes: int, root: Scope) -> int:
    """Bytes of a tensor of this size with a short name: an initializer, or a Constant node in a function."""
    proto = TensorProto(dims=shape, data_type=1, name="x" * NAME_BYTES)
    size = _framed(proto.ByteSize() + _framed(nbytes))
    return size + CONSTANT_NODE_BYTES if root.kind == "function" else size


def _framed(size: int) -> int:
    """The bytes of a field of this length with its tag and its length."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size
