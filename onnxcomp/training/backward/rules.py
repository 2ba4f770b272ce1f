"""What a rule is: an operator's derivative, from its specification, written with nodes.

    @rule("Tanh")
    def tanh(at: At) -> Value:
        return at.dy * (1.0 - at.y * at.y)

A rule gives one adjoint for each input, None for those that have none; fewer where the others have none. That of a node
with a body gives them by tensor. It may write more than is asked for: what nothing reads is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxcomp.errors import PassError
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import given
from onnxcomp.operators import ONNX_DOMAINS
from onnxcomp.training.backward.values import Operand, Value, Writer

Adjoints = Value | Sequence[Value | None] | Mapping[Any, Value]
Derive = Callable[["At"], Adjoints]


class NoRuleError(PassError):
    """A node that cannot be differentiated; the message is the reason."""


@dataclass(frozen=True)
class Rule:
    """An operator's derivative.

    broadcasts: the inputs are broadcast against each other, and what the rule gives has the output's shape.
    outputs: how many of the outputs it knows adjoints of; the loss may not depend on others.
    """

    derive: Derive
    broadcasts: bool
    outputs: int


ANY = 1 << 30  # as many outputs as there are

RULES: dict[tuple[str, str], Rule] = {}


def rule(*ops: str, broadcasts: bool = False, outputs: int = 1, domain: str = "") -> Callable[[Derive], Derive]:
    """Register the derivative of operators."""

    def register(derive: Derive) -> Derive:
        for op in ops:
            if (domain, op) in RULES:
                raise ValueError(f"{op} has two rules")
            RULES[domain, op] = Rule(derive, broadcasts, outputs)
        return derive

    return register


def domain_of(node: Node | NodeProto) -> str:
    """The node's domain, "" for the default one."""
    return "" if node.domain in ONNX_DOMAINS else str(node.domain)


@dataclass(frozen=True)
class At:
    """One node, where its rule is applied.

    adjoints: d loss / d output, of the output's shape, for each output; None where the loss does not depend on it.
    active: the tensors whose adjoints are asked for, among others.
    """

    write: Writer
    node: Node
    adjoints: Sequence[Value | None] = ()
    active: Set[Any] = frozenset()

    @property
    def wanted(self) -> list[bool]:
        """For each input, whether its adjoint is asked for."""
        return [each in self.active for each in self.node.inputs]

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        return self.node.attrs.get(name, default)

    def input(self, index: int) -> Value | None:
        """An input, None where it is left out."""
        tensor = given(self.node, index)
        return None if tensor is None else self.write.value(tensor)

    def needs(self, index: int) -> Value:
        """An input that the operator cannot be without."""
        found = self.input(index)
        assert found is not None, f"{self.node.op} lacks its input {index}"
        return found

    @property
    def inputs(self) -> list[Value]:
        """All inputs of an operator that leaves none out."""
        return [self.needs(index) for index in range(len(self.node.inputs))]

    @property
    def x(self) -> Value:
        """The first input."""
        return self.needs(0)

    @property
    def y(self) -> Value:
        """The first output."""
        return self.write.value(self.node.outputs[0])

    @property
    def dy(self) -> Value:
        """The first output's adjoint."""
        found = self.adjoints[0]
        if found is None:
            raise NoRuleError("the loss depends on an output that has no derivative here")
        return found

    @property
    def filled(self) -> Value:
        """The adjoint of any output that has one."""
        return next(each for each in self.adjoints if each is not None)

    def output(self, index: int, data_type: int) -> Value:
        """An output that the node is made to give, where it does not already."""
        while len(self.node.outputs) <= index:
            self.node.outputs.append(self.write.graph.variable(f"{self.node.outputs[0].name}_{len(self.node.outputs)}"))
        if not self.node.outputs[index].name:
            self.node.outputs[index] = self.write.graph.variable(f"{self.node.outputs[0].name}_{index}")
        return Value(self.write, self.node.outputs[index], data_type)

    def op(self, op: str, *inputs: Operand | None, type: int | None = None, domain: str = "", **attrs: Any) -> Value:
        """The first output of a new node."""
        return self.write.op(op, *inputs, type=type, domain=domain, **attrs)

    def shape(self, value: Value) -> Value:
        """The shape of a tensor of the model, a vector of int64."""
        return self.write.shape(value)

    def static(self, value: Value, what: str) -> tuple[int, ...]:
        """The dimensions of a tensor of the model; NoRuleError where they are not all known."""
        found = self.write.shapes.static(value.tensor)
        if found is None:
            raise NoRuleError(f"the shape of {what} is not known")
        return found

    def rank(self, value: Value) -> int:
        """The rank of a tensor of the model; NoRuleError where it is not known."""
        found = self.write.shapes.rank(value.tensor)
        if found is None:
            raise NoRuleError(f"the rank of {value.tensor.name} is not known")
        return found

    def axis(self, value: Value, default: int, name: str = "axis") -> int:
        """An attribute that names an axis of a tensor, counted from 0."""
        axis = int(self.attr(name, default))
        return axis + self.rank(value) if axis < 0 else axis

    def reduced(self, adjoint: Value, like: Value, to: Value) -> Value:
        """An adjoint of the shape of ``like``, summed over what ``to`` was broadcast along."""
        return unbroadcast(self.write, adjoint, like, to)


def unbroadcast(write: Writer, adjoint: Value, like: Value, to: Value) -> Value:
    """Sum an adjoint of the shape of ``like`` (a tensor of the model) to that of ``to``, which was broadcast to it."""
    big, small = write.shapes.shape(like.tensor), write.shapes.shape(to.tensor)
    if big is None or small is None:
        return unbroadcast_at_run_time(write, adjoint, like, to)
    lead = len(big) - len(small)
    inner = []
    for axis, size in enumerate(small, lead):
        if size is None and not write.shapes.same_size(to.tensor, axis - lead, like.tensor, axis):
            return unbroadcast_at_run_time(write, adjoint, like, to)
        if size == 1 and big[axis] != 1:
            inner.append(axis)
    if inner:
        adjoint = adjoint.sum(inner, keep=True)
    return adjoint.sum(list(range(lead))) if lead else adjoint


def unbroadcast_at_run_time(write: Writer, adjoint: Value, like: Value, to: Value) -> Value:
    """The same where only the run shows which axes were broadcast: those of size one, and those that ``to`` lacks."""
    shape, rank = write.shape(to), write.op("Shape", write.op("Shape", like))
    lead = rank - write.op("Shape", write.op("Shape", to))
    ones = write.constant(np.ones(1, np.int64)).expand(lead)
    axes = write.op("NonZero", write.joined([ones, shape]).equals(1)).reshape([-1])
    summed = write.op("ReduceSum", adjoint, axes, keepdims=1, noop_with_empty_axes=1)
    return summed.shaped(shape)
