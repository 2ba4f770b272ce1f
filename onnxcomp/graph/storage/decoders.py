"""Write formulas as nodes: the constant ``W`` becomes a run-time tensor ``W`` that standard operators compute.

    W = constant   ->   W = Reshape(Gather(table, Cast(bytes)), shape)

Consumers are not modified. ONNX Runtime computes such nodes once, when the session is created. Tables that do
not depend on the weight, and small constants that are equal, are written once in the outermost scope.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import PassError
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.stored.decoder_steps import INTERNED_BYTES
from onnxcomp.numerics.encodings.expression import (
    Array,
    Given,
    Literal,
    OperatorTerm,
    Term,
    binary,
    cast,
    counting,
    first,
    gather,
    literal,
    reshape,
    summed_by_products,
)
from onnxcomp.numerics.encodings.row_decoder import rows_at
from onnxcomp.numerics.encodings.table_decoder import INDEX

MIN_OPSET = 7  # broadcasting
RANGE_OPSET, SUM_OPSET, SCATTER_OPSET, MOD_OPSET, SLICE_INPUTS_OPSET = 11, 11, 11, 10, 10
INDICES = (np.dtype(np.int32), np.dtype(np.int64))  # what Gather takes
NAME_BYTES = 3  # of the names that new tensors get, as long as they are few
CONSTANT_NODE_BYTES = 30  # around the tensor of a Constant node
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
MIN_BYTES = 64  # no decoder is smaller than that


@dataclass(frozen=True, eq=False)
class Operation:
    """One node to be: operator, data inputs (terms), small integer inputs (arrays) behind them, attributes."""

    op: str
    inputs: tuple[Term, ...]
    constants: tuple[Array, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)


def operation(term: OperatorTerm, opset: int) -> Operation:
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
        case "ScatterElements" if opset < SCATTER_OPSET:
            return Operation("Scatter", term.inputs)
    return Operation(term.op, term.inputs)


def lowered(term: Term, opset: int) -> Term:
    """A term that the opset has no operator for, put in older ones."""
    if not isinstance(term, OperatorTerm):
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
    if term.op == "CumSum" and opset < SUM_OPSET:
        return summed_by_products(term.inputs[0])
    if term.op == "Gather" and term.inputs[1].dtype not in INDICES:
        return gather(term.inputs[0], cast(term.inputs[1], INDEX))
    return term


def root_of(scope: Scope) -> Scope:
    """The outermost scope around this one: the main graph or a function's body."""
    while scope.parent is not None:
        scope = scope.parent
    return scope


class DecoderWriter:
    """Writes formulas into the scopes of one root (the main graph or a function's body, and what is inside)."""

    def __init__(self, graph: Graph, root: Scope) -> None:
        self.graph = graph
        self.root = root  # where shared tables go
        self._shared: dict[Hashable, Any] = {}
        self._made: dict[int, Any] = {}
        self._keys = Keys()
        self._nodes: dict[int, tuple[Scope, list[Node]]] = {}
        self._count = 0

    def replace(self, scope: Scope, constant: Constant, term: Term) -> None:
        """Compute the scope's constant by the term from now on; its readers do not notice."""
        if not isinstance(term, OperatorTerm) or term.shape != tuple(constant.shape) or term.dtype != constant.dtype:
            raise PassError(f"{constant.name}: a decoder of {term.dtype} {term.shape} cannot stand for {constant}.")
        simple = self._keys.lowered(term, self.root.opset)
        assert isinstance(simple, OperatorTerm)
        self._node(simple, scope, self.graph.to_variable(constant))
        self._made.clear()
        self._keys = Keys()

    def look_up(self, scope: Scope, constant: Constant, term: Term) -> None:
        """Let every Gather that reads the constant's rows read those of its codes, and decode what it found."""
        graph = self.graph
        for reader in list(constant.outputs):
            place = next(each for each in graph.scopes if each.graph.holds(reader))
            ids = Given((1,), INDEX, reader.inputs[1])
            found = rows_at(term, constant.shape[0], ids)
            if not isinstance(found, OperatorTerm):
                raise PassError(f"{constant.name}: {reader.name or 'a Gather'} cannot look rows up before decoding.")
            output = reader.outputs[0]
            graph.remove_node(place, reader)
            self._fixed_parts(found, scope)
            self._node(found, place, output)
        graph.forget(scope, constant)
        self._made.clear()
        self._keys = Keys()

    def _fixed_parts(self, term: Term, scope: Scope) -> bool:
        """Write the parts that do not depend on run-time tensors into the constant's scope; whether all do not."""
        if not isinstance(term, OperatorTerm):
            return not isinstance(term, Given)
        fixed = [self._fixed_parts(each, scope) for each in term.inputs]
        if not all(fixed):
            for each, is_fixed in zip(term.inputs, fixed, strict=True):
                if is_fixed:
                    self._tensor(each, scope)
        return all(fixed)

    def finish(self) -> None:
        """Put the new nodes before all others of their scopes."""
        for scope, nodes in self._nodes.values():
            scope.graph.nodes = [*nodes, *scope.graph.nodes]
        self._nodes.clear()

    def _tensor(self, term: Term, scope: Scope) -> Any:
        if isinstance(term, Given):
            return term.tensor
        key = self._keys.of(term)
        if key is not None and key in self._shared:
            return self._shared[key]
        if id(term) in self._made:
            return self._made[id(term)]
        simple = self._keys.lowered(term, self.root.opset)
        if isinstance(simple, OperatorTerm):
            tensor = self.graph.variable(self._name())
            self._node(simple, self.root if key is not None else scope, tensor)
        else:
            assert isinstance(simple, Literal)
            tensor = self._literal(simple.make(), scope)
        self._made[id(term)] = tensor
        if key is not None:
            self._shared[key] = tensor
        return tensor

    def _node(self, term: OperatorTerm, scope: Scope, output: Any) -> None:
        """Add the node that computes the term after those that it needs."""
        step = operation(term, self.root.opset)
        inputs = [self._tensor(each, scope) for each in step.inputs]
        inputs += [self._literal(each, scope) for each in step.constants]
        nodes = self._nodes.setdefault(id(scope), (scope, []))[1]
        nodes.append(Node(step.op, "", OrderedDict(step.attrs), inputs, [output], None))

    def _literal(self, values: Array, scope: Scope) -> Any:
        if values.nbytes > INTERNED_BYTES:
            return self.graph.constant(scope, self._name(), values)
        key = content_key(values)
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


class Keys:
    """What equal terms share, for terms that live as long as this object does."""

    def __init__(self) -> None:
        self._keys: dict[int, Hashable | None] = {}
        self._kept: list[Term] = []

    def of(self, term: Term) -> Hashable | None:
        """The key of the term; None where it rests on data of one weight alone."""
        if id(term) not in self._keys:
            self._kept.append(term)  # so that no other term gets its id
            self._keys[id(term)] = self._make(term)
        return self._keys[id(term)]

    def lowered(self, term: Term, opset: int) -> Term:
        """``lowered``, whose result is kept alive too."""
        result = lowered(term, opset)
        self._kept.append(result)
        return result

    def _make(self, term: Term) -> Hashable | None:
        if isinstance(term, Given):
            return None
        if isinstance(term, Literal):
            return content_key(term.make()) if term.nbytes <= INTERNED_BYTES else None
        assert isinstance(term, OperatorTerm)
        inputs = tuple(self.of(each) for each in term.inputs)
        if None in inputs:
            return None
        attrs = tuple(content_key(each) if isinstance(each, np.ndarray) else each for each in term.attrs.values())
        return (term.op, inputs, attrs, term.shape)


def content_key(values: Array) -> Hashable:
    """What equal arrays share."""
    return ("literal", str(values.dtype), values.shape, values.tobytes())


# --- what it costs -----------------------------------------------------------------------------------------


@dataclass
class DecoderCost:
    """Bytes of the serialized model: the decoder's own, and those of each shared part by its key."""

    own: int = 0
    shared: dict[Hashable, int] = field(default_factory=dict)
    computed: int = 0  # bytes of all tensors that are computed for this weight alone
    largest: int = 0  # bytes of the largest tensor that is computed

    def size(self, uses: Mapping[Hashable, int]) -> int:
        """Bytes in a model in which other decoders use shared parts this many times."""
        return self.own + sum(size for key, size in self.shared.items() if not uses.get(key))


def cost_of(term: Term, root: Scope) -> DecoderCost:
    """What writing the term takes, counted as protobuf does, without making its data."""
    costing = _Costing(root)
    costing.add(term, None, top=True)
    return costing.cost


class _Costing:
    def __init__(self, root: Scope) -> None:
        self.root = root
        self.cost = DecoderCost()
        self._seen: set[int] = set()
        self._keys = Keys()

    def add(self, term: Term, owner: Hashable | None, *, top: bool = False) -> None:
        key = None if top else self._keys.of(term)  # the weight itself is computed under its own name
        if id(term) in self._seen or (key is not None and key in self.cost.shared):
            return
        self._seen.add(id(term))
        if key is not None:
            owner = key
            self.cost.shared[key] = 0
        simple = self._keys.lowered(term, self.root.opset)
        if isinstance(simple, Given):
            return
        if isinstance(simple, Literal):
            self._charge(owner, tensor_bytes(simple.shape, simple.nbytes, self.root))
            return
        assert isinstance(simple, OperatorTerm)
        self.cost.largest = max(self.cost.largest, simple.nbytes)
        self.cost.computed += simple.nbytes if owner is None else 0
        step = operation(simple, self.root.opset)
        self._charge(owner, _node_bytes(step))
        for values in step.constants:
            size = tensor_bytes(values.shape, values.nbytes, self.root)
            self.cost.shared.setdefault(content_key(values), size)
        for each in step.inputs:
            self.add(each, owner)

    def _charge(self, owner: Hashable | None, size: int) -> None:
        if owner is None:
            self.cost.own += size
        else:
            self.cost.shared[owner] += size


def _node_bytes(step: Operation) -> int:
    size = 2 + len(step.op) + (len(step.inputs) + len(step.constants) + 1) * (2 + NAME_BYTES)
    for name, value in step.attrs.items():
        if isinstance(value, np.ndarray):
            value = numpy_helper.from_array(value)
        size += _framed(helper.make_attribute(name, value).ByteSize())
    return _framed(size)


def tensor_bytes(shape: Sequence[int], nbytes: int, root: Scope) -> int:
    """Bytes of a tensor of this size with a short name: an initializer, or a Constant node in a function."""
    proto = TensorProto(dims=shape, data_type=1, name="x" * NAME_BYTES)
    size = _framed(proto.ByteSize() + _framed(nbytes))
    return size + CONSTANT_NODE_BYTES if root.kind == "function" else size


def _framed(size: int) -> int:
    """The bytes of a field of this length with its tag and its length."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size
