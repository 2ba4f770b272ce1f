"""Derivatives of nodes that have bodies: another such node, whose body computes the old one again and then goes back.

Scan(states, elements)     a Scan in the other direction over the states that each turn began with, the elements and
                           the outputs' adjoints; its states are the adjoints of the states, and the sums of those of
                           what the body reads from outside
If(condition)              an If of the same condition, whose branches give the adjoints of what either reads
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_graphsurgeon as gs

from onnxcomp.graph.ir.nodes import Variable
from onnxcomp.training.backward.bodies import add_input, add_output, captured, copied_into, new_body
from onnxcomp.training.backward.rules import ANY, Adjoints, At, NoRuleError, rule
from onnxcomp.training.backward.sweep import between, carries, sweep
from onnxcomp.training.backward.values import FLOATS, Value, Writer


@rule("If", outputs=ANY)
def if_(at: At) -> Adjoints:
    wanted = [each for each in captured(at.write.graph, at.node) if each in at.active]
    outer = [at.write.value(each) for each in wanted]
    branches = {}
    for name in ("then_branch", "else_branch"):
        branch, inner = at.attr(name), new_body(at.write, f"backward_{name}")
        known: dict[Any, Any] = {}
        copied_into(inner, branch, known)
        pairs = zip(branch.outputs, at.adjoints, strict=True)
        seeds = [(known.get(out, out), Value(inner, each.tensor, each.data_type)) for out, each in pairs if each]
        found = _gone_back(inner, seeds, wanted)
        for each in outer:
            one = Value(inner, each.tensor, each.data_type)
            add_output(inner, found.get(each.tensor) or inner.zeros(inner.shape(one), each.data_type))
        branches[name] = inner.scope.graph
    return _written(at, [at.needs(0)], branches, outer)


def _written(at: At, inputs: Sequence[Value], attrs: dict[str, Any], outer: Sequence[Value]) -> dict[Any, Value]:
    """The node that goes back, whose outputs are the adjoints of ``outer``."""
    if not outer:
        return {}
    made = [at.write.graph.variable(f"backward_{at.node.op}") for _ in outer]
    at.write.graph.node(at.write.scope, at.node.op, [each.tensor for each in inputs], made, attrs=attrs)
    return {each.tensor: Value(at.write, out, each.data_type) for each, out in zip(outer, made, strict=True)}


def _gone_back(inner: Writer, seeds: Sequence[tuple[Any, Value]], sources: Sequence[Any]) -> dict[Any, Value]:
    """The adjoints of the sources, written into a body that computes what has seeds; NoRuleError with the operator."""
    summed: dict[Any, Value] = {}
    for tensor, adjoint in seeds:
        summed[tensor] = adjoint if tensor not in summed else summed[tensor] + adjoint
    way = between(list(inner.scope.graph.nodes), inner.shapes, summed, sources)
    made = sweep(inner, way, summed)
    if made.reasons:
        op, reason = next(iter(made.reasons.items()))
        raise NoRuleError(f"{op} in it: {reason}")
    return {each: made.adjoints[each] for each in sources if each in made.adjoints}


@rule("Scan", outputs=ANY)
def scan(at: At) -> Adjoints:
    back = _ScanBack(at)
    return back.written()


class _ScanBack:
    """The Scan that goes back; the old one is made to give the states that each turn began with."""

    def __init__(self, at: At) -> None:
        self.at, self.write = at, at.write
        self.body: gs.Graph = at.attr("body")
        self.elements = int(at.attr("num_scan_inputs"))
        self.states = len(at.node.inputs) - self.elements
        self.outputs = len(at.node.outputs) - self.states
        self.in_axes, self.in_ways = (
            self._ints(f"scan_input_{each}", self.elements) for each in ("axes", "directions")
        )
        self.out_axes, self.out_ways = (
            self._ints(f"scan_output_{each}", self.outputs) for each in ("axes", "directions")
        )
        wanted = [each for each in captured(at.write.graph, at.node) if each in at.active]
        self.outer = [each for each in map(at.write.value, wanted) if each.data_type in FLOATS]
        self.carrying = [i for i in range(self.states) if carries(at.write.shapes, at.node.outputs[i])]
        self.trained = [i for i in range(self.elements) if at.node.inputs[self.states + i] in at.active]

    def _ints(self, name: str, count: int) -> list[int]:
        return list(self.at.attr(name) or [0] * count)

    def written(self) -> dict[Any, Value]:
        write, node, adjoints = self.write, self.at.node, self.at.adjoints
        given = [index for index in range(self.outputs) if adjoints[self.states + index] is not None]
        inner = new_body(write, "backward_scan")
        known: dict[Any, Any] = {}
        formal = self.body.inputs
        back = [self._input(inner, formal[index]) for index in self.carrying]
        sums = [add_input(inner, each.data_type, write.shapes.shape(each.tensor)) for each in self.outer]
        known.update((each, self._input(inner, each).tensor) for each in formal)
        parts = [self._input(inner, self.body.outputs[self.states + index]) for index in given]
        copied_into(inner, self.body, known)
        results = [known.get(each, each) for each in self.body.outputs]
        seeds = [(results[index], each) for index, each in zip(self.carrying, back, strict=True)]
        seeds += [(results[self.states + index], each) for index, each in zip(given, parts, strict=True)]
        sources = [known[formal[index]] for index in self.carrying]
        elements = [known[formal[self.states + index]] for index in self.trained]
        found = _gone_back(inner, seeds, [*sources, *elements, *(each.tensor for each in self.outer)])
        for tensor in sources:
            add_output(inner, self._found(inner, found, tensor), _shape(write, tensor))
        for total, each in zip(sums, self.outer, strict=True):
            sum_ = total + found[each.tensor] if each.tensor in found else total
            add_output(inner, sum_, _shape(write, each.tensor))
        for tensor in elements:
            add_output(inner, self._found(inner, found, tensor), _shape(write, tensor))
        starts = [self._start(index) for index in self.carrying]
        zeros = [write.zeros(write.shape(each), each.data_type) for each in self.outer]
        read = [*self._saved(), *(write.value(each) for each in node.inputs[self.states :])]
        told = [told for index in given if (told := adjoints[self.states + index]) is not None]
        attrs = self._attrs(inner, given)
        places = [node.inputs[index] for index in self.carrying]
        targets = [
            *places,
            *(each.tensor for each in self.outer),
            *(node.inputs[self.states + i] for i in self.trained),
        ]
        made = [write.graph.variable("backward_Scan") for _ in targets]
        inputs = [each.tensor for each in (*starts, *zeros, *read, *told)]
        write.graph.node(write.scope, "Scan", inputs, made, attrs=attrs)
        return _summed(write, targets, made)

    def _attrs(self, inner: Writer, given: Sequence[int]) -> dict[str, Any]:
        """The same axes; the other direction of each."""
        axes = [0] * self.states + self.in_axes + [self.out_axes[index] for index in given]
        ways = [1] * self.states + [1 - each for each in self.in_ways] + [1 - self.out_ways[index] for index in given]
        attrs: dict[str, Any] = {"body": inner.scope.graph, "num_scan_inputs": len(axes)}
        attrs.update(scan_input_axes=axes, scan_input_directions=ways)
        if self.trained:
            attrs["scan_output_axes"] = [self.in_axes[index] for index in self.trained]
            attrs["scan_output_directions"] = [1 - self.in_ways[index] for index in self.trained]
        return attrs

    def _input(self, inner: Writer, like: Any) -> Value:
        return add_input(inner, inner.shapes.data_type(like), _shape(inner, like))

    def _found(self, inner: Writer, found: dict[Any, Value], tensor: Any) -> Value:
        if tensor in found:
            return found[tensor]
        value = inner.value(tensor)
        return inner.zeros(inner.shape(value), value.data_type)

    def _start(self, index: int) -> Value:
        """The adjoint of a state after the last turn."""
        adjoint = self.at.adjoints[index]
        if adjoint is not None:
            return adjoint
        state = self.write.value(self.at.node.inputs[index])
        return self.write.zeros(self.write.shape(state), state.data_type)

    def _saved(self) -> list[Value]:
        """The states that each turn began with, (turns, *state)."""
        node, graph, made = self.at.node, self.write.graph, []
        scope = next(each for each in graph.scopes if each.graph is self.body)
        for index in range(self.states):
            formal = self.body.inputs[index]
            kept, whole = graph.variable(f"{formal.name}_kept"), graph.variable(f"{formal.name}_all")
            graph.node(scope, "Identity", [formal], [kept])
            self.body.outputs.append(kept)
            node.outputs.append(whole)
            made.append(Value(self.write, whole, self.write.shapes.data_type(formal)))
        if "scan_output_axes" in node.attrs:
            node.attrs["scan_output_axes"] = [*self.out_axes, *[0] * self.states]
        if "scan_output_directions" in node.attrs:
            node.attrs["scan_output_directions"] = [*self.out_ways, *[0] * self.states]
        return made


def _shape(write: Writer, tensor: Any) -> Any:
    """What is known of a tensor's shape, else what the model states, which is the best that there is for a Scan."""
    known = write.shapes.shape(tensor)
    return tensor.shape if known is None else known


def _summed(write: Writer, targets: Sequence[Any], made: Sequence[Variable]) -> dict[Any, Value]:
    """The adjoints by tensor; one may be read at several places."""
    summed: dict[Any, Value] = {}
    for tensor, out in zip(targets, made, strict=True):
        adjoint = Value(write, out, write.shapes.data_type(tensor))
        summed[tensor] = summed[tensor] + adjoint if tensor in summed else adjoint
    return summed
