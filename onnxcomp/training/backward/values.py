"""Nodes as algebra: ``dy * (1.0 - y * y)`` writes a Mul, a Sub and a Mul into a graph.

    write = Writer(graph, shapes)
    y = write.value(tensor)
    (dy * y).sum([0])              ReduceSum(Mul(dy, y), [0])

Numbers beside a value become constants of its element type. The same operator on the same values is written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxcomp.errors import PassError
from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Constant, Variable
from onnxcomp.graph.ir.reader import Graph, Scope

Array = NDArray[Any]
INT64 = int(TensorProto.INT64)
BOOL = int(TensorProto.BOOL)
FLOAT = int(TensorProto.FLOAT)
DOUBLE = int(TensorProto.DOUBLE)
SHORT = frozenset({int(TensorProto.FLOAT16), int(TensorProto.BFLOAT16)})
FLOATS = SHORT | {FLOAT, DOUBLE}
BOOLEAN_OPS = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Not", "IsNaN"})
INTEGER_OPS = frozenset({"Shape", "Size", "NonZero"})


class NoRuleError(PassError):
    """A node that cannot be differentiated; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Symbol:
    """A tensor of the graph that is written, with its element type; a function's operators are its methods."""

    write: Writer
    tensor: Any
    data_type: int

    def __add__(self, other: Operand) -> Symbol:
        return self.write.op("Add", self, other)

    def __radd__(self, other: Operand) -> Symbol:
        return self.write.op("Add", self.write.alike(other, self), self)

    def __sub__(self, other: Operand) -> Symbol:
        return self.write.op("Sub", self, other)

    def __rsub__(self, other: Operand) -> Symbol:
        return self.write.op("Sub", self.write.alike(other, self), self)

    def __mul__(self, other: Operand) -> Symbol:
        return self.write.op("Mul", self, other)

    def __rmul__(self, other: Operand) -> Symbol:
        return self * other

    def __truediv__(self, other: Operand) -> Symbol:
        return self.write.op("Div", self, other)

    def __rtruediv__(self, other: Operand) -> Symbol:
        return self.write.op("Div", self.write.alike(other, self), self)

    def __neg__(self) -> Symbol:
        return self.write.op("Neg", self)

    def __gt__(self, other: Operand) -> Symbol:
        return self.write.op("Greater", self, other)

    def __ge__(self, other: Operand) -> Symbol:
        return self.write.op("GreaterOrEqual", self, other)

    def __lt__(self, other: Operand) -> Symbol:
        return self.write.op("Less", self, other)

    def __le__(self, other: Operand) -> Symbol:
        return self.write.op("LessOrEqual", self, other)

    def __and__(self, other: Symbol) -> Symbol:
        return self.write.op("And", self, other)

    def equals(self, other: Operand) -> Symbol:
        """Where both are the same."""
        return self.write.op("Equal", self, other)

    def cast(self, data_type: int) -> Symbol:
        """The same in another element type."""
        return self if data_type == self.data_type else self.write.op("Cast", self, to=data_type, type=data_type)

    def only(self, condition: Symbol) -> Symbol:
        """This where the condition holds, zero where it does not (or nan, times zero); twice as fast as ``where``."""
        return self * condition.cast(self.data_type)

    def where(self, condition: Symbol, otherwise: Operand = 0.0) -> Symbol:
        """This where the condition holds, something else where it does not."""
        return self.write.op("Where", condition, self, self.write.alike(otherwise, self), type=self.data_type)

    def sum(self, axes: Operand | None = None, *, keep: bool = False) -> Symbol:
        """The sum over axes (all for None)."""
        return self.write.op("ReduceSum", self, axes, keepdims=int(keep))

    def mean(self, axes: Operand | None = None, *, keep: bool = False) -> Symbol:
        """The mean over axes (all for None)."""
        return self.write.op("ReduceMean", self, axes, keepdims=int(keep))

    def reshape(self, shape: Operand) -> Symbol:
        """The same elements in another shape."""
        return self.write.op("Reshape", self, shape)

    def shaped(self, shape: Symbol) -> Symbol:
        """The same elements in the very shape of a tensor, whose zeros are zeros."""
        return self.write.op("Reshape", self, shape, allowzero=1)

    def transpose(self, perm: Sequence[int]) -> Symbol:
        """The axes in another order."""
        return self if list(perm) == sorted(perm) else self.write.op("Transpose", self, perm=list(perm))

    def turned(self, rank: int) -> Symbol:
        """The last two of so many axes swapped."""
        return self.transpose([*range(rank - 2), rank - 1, rank - 2])

    def slice(self, starts: Operand, ends: Operand, axes: Operand, steps: Operand | None = None) -> Symbol:
        """A part along some axes."""
        return self.write.op("Slice", self, starts, ends, axes, steps)

    def expand(self, shape: Operand) -> Symbol:
        """Broadcast to a shape."""
        return self.write.op("Expand", self, shape)

    def pad(self, before: Operand, after: Operand) -> Symbol:
        """Zeros around it, for each axis; negative numbers cut."""
        return self.write.op("Pad", self, self.write.joined([before, after]))

    def unsqueeze(self, axes: Operand) -> Symbol:
        """Axes of size one put in."""
        return self.write.op("Unsqueeze", self, axes)


Operand = Symbol | float | int | Sequence[int] | Array


class Writer:
    """Puts nodes into one scope: the main graph, if no other is named.

    shapes: what is known of the tensors that were there before.
    """

    def __init__(self, graph: Graph, shapes: Shapes, scope: Scope | None = None) -> None:
        self.graph = graph
        self.shapes = shapes
        self.scope = scope or graph.main
        self._written: dict[Any, tuple[Symbol, ...]] = {}
        self._constants: dict[Any, Symbol] = {}

    def value(self, tensor: Any) -> Symbol:
        """A tensor that the graph has."""
        return Symbol(self, tensor, self.shapes.data_type(tensor))

    def op(self, op: str, *inputs: Operand | None, type: int | None = None, domain: str = "", **attrs: Any) -> Symbol:
        """The first output of a new node; ``type`` is its element type where it is not that of the first value."""
        return self.ops(op, *inputs, outputs=1, type=type, domain=domain, attrs=attrs)[0]

    def ops(
        self,
        op: str,
        *inputs: Operand | None,
        outputs: int,
        type: int | None = None,
        domain: str = "",
        attrs: dict[str, Any] | None = None,
    ) -> tuple[Symbol, ...]:
        """All outputs of a new node; a list of numbers is a vector of int64, a number takes the first value's type."""
        first = next(each for each in inputs if isinstance(each, Symbol))
        given = [None if each is None else self.alike(each, first) for each in inputs]
        while given and given[-1] is None:
            given.pop()
        tensors = tuple(Variable("") if each is None else each.tensor for each in given)
        read = tuple(each if each.name else None for each in tensors)
        key = (op, domain, outputs, read, repr(sorted((attrs or {}).items())))
        if key not in self._written:
            if type is None:
                type = BOOL if op in BOOLEAN_OPS else INT64 if op in INTEGER_OPS else first.data_type
            made = [self.graph.variable(f"backward_{op}") for _ in range(outputs)]
            self.graph.node(self.scope, op, tensors, made, attrs=attrs, domain=domain)
            self._written[key] = tuple(Symbol(self, each, type) for each in made)
        return self._written[key]

    def alike(self, operand: Operand, value: Symbol) -> Symbol:
        """An operand as a value: a number in the type of ``value``, a list as a vector of int64."""
        if isinstance(operand, Symbol):
            return operand
        if isinstance(operand, float | int):
            if not value.data_type:
                raise NoRuleError(f"the type of {value.tensor.name} is not known")
            return self.constant(np.array(operand, helper.tensor_dtype_to_np_dtype(value.data_type)))
        return self.constant(operand if isinstance(operand, np.ndarray) else np.array(operand, np.int64).reshape(-1))

    def constant(self, values: Array) -> Symbol:
        """A constant of the graph, each once."""
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            made = self.graph.constant(self.scope, "backward_constant", values)
            self._constants[key] = Symbol(self, made, helper.np_dtype_to_tensor_dtype(values.dtype))
        return self._constants[key]

    def shape(self, value: Symbol) -> Symbol:
        """The shape of a value that was there before, a vector of int64: known now, or when the graph runs."""
        static = self.shapes.static(value.tensor)
        return self.op("Shape", value) if static is None else self.constant(np.array(static, np.int64))

    def size(self, value: Symbol, axis: int) -> Symbol:
        """One dimension of it, a vector of one; counted from the end where the axis is negative."""
        rank = self.shapes.rank(value.tensor)
        if axis >= 0 or rank is not None:
            return self.sizes(value, axis % rank if rank else axis, (axis % rank if rank else axis) + 1)
        end: dict[str, Any] = {} if axis == -1 else {"end": axis + 1}
        return self.op("Shape", value, start=axis, **end)

    def sizes(self, value: Symbol, start: int, end: int) -> Symbol:
        """Some of its dimensions (counted from 0)."""
        shape = self.shapes.shape(value.tensor)
        if shape is not None and all(dim is not None for dim in shape[start:end]):
            return self.constant(np.array(shape[start:end], np.int64))
        return self.op("Shape", value, start=start, end=end)

    def joined(self, parts: Sequence[Operand]) -> Symbol:
        """Vectors of int64, one after the other."""
        values = [each if isinstance(each, Symbol) else self.constant(np.array(each, np.int64)) for each in parts]
        known = [each.tensor for each in values]
        if all(isinstance(each, Constant) for each in known):
            return self.constant(np.concatenate([each.values for each in known]))
        return self.op("Concat", *values, axis=0)

    def pieces(self, vector: Symbol, count: int) -> list[Symbol]:
        """The elements of a vector of so many, each a vector of one."""
        if isinstance(vector.tensor, Constant):
            return [self.constant(vector.tensor.values[index : index + 1]) for index in range(count)]
        return [vector.slice([index], [index + 1], [0]) for index in range(count)]

    def zeros(self, shape: Symbol, data_type: int) -> Symbol:
        """Zeros of a shape. Raises NoRuleError where the type is not known."""
        if not data_type:
            raise NoRuleError("the type of what it is computed from is not known")
        zero = self.constant(np.zeros((), helper.tensor_dtype_to_np_dtype(data_type)))
        return zero.expand(shape)
