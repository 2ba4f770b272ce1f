"""Show what tensors inside If, Loop and Scan bodies hold, as sketches of fixed size that come out as outputs.

    x in a body  ->  totals [count, oddness], peaks [-least, greatest, -rank, rank], samples (2048,)

ONNX Runtime cannot be asked for an inner tensor, and one that comes out of a Loop would come in any number of
shapes. So standard operators make the sketch where the tensor is, and the nodes around it hand it on: an If gets
three more outputs, empty ones in its other branch; a Loop or Scan as many more states, into which each iteration
merges its own sketch. What a run never reached has a count of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto, helper

from onnxcomp.errors import TargetError
from onnxcomp.graph.infer.element_types import ElementTypes
from onnxcomp.graph.infer.shapes import infer_shapes
from onnxcomp.graph.ir.nodes import Array, Constant, Node, Variable
from onnxcomp.graph.ir.query import is_onnx
from onnxcomp.graph.ir.reader import Graph, Scope, close_graph, open_graph
from onnxcomp.model import Model
from onnxcomp.runtime import Session
from onnxcomp.tensors import FLOAT_TYPES

SAMPLES = 2048
JITTER = 1024  # each sample is drawn from its own part of the tensor, at one of so many places
# Park and Miller's generator, Random number generators: good ones are hard to find, 1988, with their later factor.
# ONNX Runtime (1.32) has no random operators at opset 22.
PRIME, FACTOR = 2**31 - 1, 48271
ABOVE_PRIME = 1.0001 * PRIME  # so that all chances are below one, and the first values replace every sample of none
COUNT, ODDNESS = range(2)
LEAST_OPSET = 7  # elementwise operators broadcast from there on
SCAN_OPSET = 9  # before, Scan runs over a batch of sequences, each with states of its own

Parts = tuple[Any, Any, Any]  # totals, peaks, samples
LENGTHS = (2, 4, SAMPLES)


@dataclass(frozen=True)
class Sketch:
    """What was seen of a tensor in one run: (2048,) samples of ``count`` values from ``low`` to ``high``."""

    count: int
    is_odd: bool
    low: float
    high: float
    ranks: frozenset[int]
    samples: Array

    @classmethod
    def of(cls, totals: Array, peaks: Array, samples: Array) -> Sketch:
        """From the three outputs."""
        count = round(float(totals[COUNT]))
        ranks = frozenset({int(-peaks[2]), int(peaks[3])} if count else ())
        low, high = -float(peaks[0]), float(peaks[1])
        return cls(count, not np.isfinite(totals[ODDNESS]), low, high, ranks, samples)


@dataclass
class Sketched:
    """A model that hands out sketches: for each key the names of its three outputs, or why there are none.

    dtypes: the element types of those that have none because they hold no floats, and of those that do.
    """

    model: Model
    outputs: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def sketched(model: Model, keys: Sequence[str]) -> Sketched:
    """The model with sketches of the tensors of subgraphs that go by these keys (``Scope.key``)."""
    graph = open_graph(model)
    types = ElementTypes(graph, infer_shapes(graph), _output_types)
    found = Sketched(model)
    sketcher = _Sketcher(graph)
    tensors = _tensors(graph, keys)
    for key in keys:
        if key not in tensors:
            found.faults[key] = "is not in the model"
            continue
        scope, tensor = tensors[key]
        kind = types.of(tensor)
        fault = sketcher.fault(scope) or ("is of no known type" if not kind else None)
        if fault:
            found.faults[key] = fault
            continue
        found.dtypes[key] = str(helper.tensor_dtype_to_np_dtype(kind))
        if kind in FLOAT_TYPES:
            found.outputs[key] = sketcher.hand_out(scope, tensor, kind)
    found.model = close_graph(graph)
    return found


def _output_types(model: ModelProto) -> tuple[str, ...] | None:
    """The types of a model's outputs as ONNX Runtime finds them; None where it does not load."""
    try:
        return tuple(each.type for each in Session(model.SerializeToString()).outputs)
    except TargetError:
        return None


def _tensors(graph: Graph, keys: Sequence[str]) -> dict[str, tuple[Scope, Any]]:
    """The scope and tensor that each key names; a body may also name what it reads from outside."""
    wanted = set(keys)
    found: dict[str, tuple[Scope, Any]] = {}
    for scope in graph.scopes:
        own = [*scope.graph.inputs, *(out for node in scope.graph.nodes for out in node.outputs)]
        read = [each for node in scope.graph.nodes for each in node.inputs]
        for tensor in (*own, *read, *scope.graph.outputs):
            if tensor.name and (key := scope.key(tensor.name)) in wanted:
                found.setdefault(key, (scope, tensor))
    return found


class _Sketcher:
    """Adds sketches to a graph, and what hands them out."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._scopes = {id(scope.graph): scope for scope in graph.scopes}
        self._constants: dict[str, Constant] = {}
        self._merges = 0
        self._owners: dict[int, tuple[Scope, Node]] = {}
        for scope, node in graph.nodes():
            for value in node.attrs.values():
                if isinstance(value, gs.Graph):
                    self._owners[id(value)] = scope, node

    def fault(self, scope: Scope) -> str | None:
        """Why nothing can be handed out of a scope, None where it can."""
        if self._graph.opset < LEAST_OPSET:
            return f"is inside a subgraph of opset {self._graph.opset}"
        while scope is not self._graph.main:
            if scope.kind == "function" or id(scope.graph) not in self._owners:
                return "is inside a function (inline-functions writes it out where it is called)"
            scope, node = self._owners[id(scope.graph)]
            if not is_onnx(node, "If", "Loop", "Scan"):
                return f"is inside a {node.op}"
            if node.op == "Scan" and self._graph.opset < SCAN_OPSET:
                return "is inside a Scan over batches, as it was before opset 9"
        return None

    def hand_out(self, scope: Scope, tensor: Any, kind: int) -> tuple[str, str, str]:
        """Make the sketch of a tensor of floats an output of the model; gives the names of its parts."""
        parts = self._sketch(scope, tensor, kind)
        while scope is not self._graph.main:
            inner, (scope, node) = scope, self._owners[id(scope.graph)]
            through = {"If": self._through_if, "Loop": self._through_loop, "Scan": self._through_scan}[node.op]
            parts = through(node, inner, parts)
        self._graph.main.graph.outputs.extend(parts)
        return cast("tuple[str, str, str]", tuple(each.name for each in parts))

    def _sketch(self, scope: Scope, tensor: Any, kind: int) -> Parts:
        def put(op: str, *inputs: Any, **attrs: Any) -> Variable:
            return self._put(scope, op, inputs, attrs)

        plain = tensor if kind == TensorProto.FLOAT else put("Cast", tensor, to=int(TensorProto.FLOAT))
        flat = put("Reshape", plain, self._constant("flat", np.array([-1], np.int64)))
        size, rank = put("Size", plain), put("Size", put("Shape", plain))
        # One element more, so that an empty tensor has one, too.
        filled = put("Concat", flat, self._constant("zero", np.zeros(1, np.float32)), axis=0)
        places = put("Div", put("Mul", size, self._constant("places", _places())), self._constant("parts", _parts()))
        nothing = self._constant("lowest", np.full(1, -np.inf, np.float32))
        ends = [put("ReduceMax", put("Concat", each, nothing, axis=0), keepdims=1) for each in (put("Neg", flat), flat)]
        # x - x is 0 for what is finite and NaN for the rest, in every opset.
        oddness = put("ReduceSum", put("Sub", filled, filled), keepdims=1)
        count, dimensions = (self._as_vector(put, each) for each in (size, rank))
        totals = put("Concat", count, oddness, axis=0)
        peaks = put("Concat", *ends, put("Neg", dimensions), dimensions, axis=0)
        return _typed(totals, peaks, put("Gather", filled, places, axis=0))

    def _as_vector(self, put: Any, size: Variable) -> Variable:
        shape = self._constant("single", np.array([1], np.int64))
        return cast(Variable, put("Reshape", put("Cast", size, to=int(TensorProto.FLOAT)), shape))

    def _through_if(self, node: Node, inner: Scope, parts: Parts) -> Parts:
        filled = len(inner.graph.outputs)
        inner.graph.outputs.extend(parts)
        other = next(each for each in node.attrs.values() if isinstance(each, gs.Graph) and each is not inner.graph)
        empty = (self._put(self._scopes[id(other)], "Identity", [each], {}) for each in self._nothing())
        other.outputs.extend(_typed(*empty))
        return self._added(node, filled)

    def _through_loop(self, node: Node, inner: Scope, parts: Parts) -> Parts:
        states = len(inner.graph.inputs) - 2  # after the count and the condition, which may be left out
        _pad(node.inputs, 2 + states)
        return self._carried(node, inner, parts, node_at=(2 + states, states), body_at=(2 + states, 1 + states))

    def _through_scan(self, node: Node, inner: Scope, parts: Parts) -> Parts:
        states = len(node.inputs) - node.attrs["num_scan_inputs"]
        return self._carried(node, inner, parts, node_at=(states, states), body_at=(states, states))

    def _carried(
        self, node: Node, inner: Scope, parts: Parts, *, node_at: tuple[int, int], body_at: tuple[int, int]
    ) -> Parts:
        """Let the node carry a sketch from iteration to iteration, from these positions of inputs and outputs on."""
        before = [*self._variables(), self._graph.variable("sketch", np.int64, [SAMPLES])]
        after = self._merge(inner, before, parts)
        first = self._graph.constant(self._graph.main, "sketch_numbers", self._drawn())
        _insert(node.inputs, node_at[0], [*self._nothing(), first])
        _insert(inner.graph.inputs, body_at[0], before)
        _insert(inner.graph.outputs, body_at[1], after)
        made = self._added(node, node_at[1])
        _insert(node.outputs, node_at[1] + len(made), [self._graph.variable("sketch", np.int64, [SAMPLES])])
        return made

    def _merge(self, scope: Scope, old: Sequence[Any], new: Parts) -> list[Any]:
        """The sketch of two sketches' values: each sample turns new with a chance of the new share of the values.

        So as many are left of each iteration in the end. ``old`` ends with the numbers that the last chances were
        made from, and so does what is returned.
        """

        def put(op: str, *inputs: Any, **attrs: Any) -> Variable:
            return self._put(scope, op, inputs, attrs)

        totals = put("Add", old[0], new[0])
        at = self._constant("at", np.array([COUNT], np.int64))
        share = put("Div", put("Gather", new[0], at, axis=0), put("Gather", totals, at, axis=0))
        prime = self._constant("prime", np.array([PRIME], np.int64))
        grown = put("Mul", old[3], self._constant("factor", np.array([FACTOR], np.int64)))
        numbers = put("Sub", grown, put("Mul", put("Div", grown, prime), prime))
        numbers.dtype, numbers.shape = np.dtype(np.int64), [SAMPLES]
        above = self._constant("above_prime", np.full(1, ABOVE_PRIME, np.float32))
        chance = put("Div", put("Cast", numbers, to=int(TensorProto.FLOAT)), above)
        taken = put("Cast", put("Less", chance, share), to=int(TensorProto.FLOAT))
        left = put("Sub", self._constant("one", np.ones(1, np.float32)), taken)
        samples = put("Add", put("Mul", taken, new[2]), put("Mul", left, old[2]))
        return [*_typed(totals, put("Max", old[1], new[1]), samples), numbers]

    def _drawn(self) -> Array:
        """(2048,) int64: what chances start from, for each merge others."""
        self._merges += 1
        return np.random.default_rng(self._merges).integers(1, PRIME, SAMPLES)

    def _added(self, node: Node, position: int) -> Parts:
        """Three more outputs of a node, from a position on."""
        _pad(node.outputs, position)
        made = self._variables()
        _insert(node.outputs, position, made)
        return made

    def _nothing(self) -> Parts:
        """The sketch of no values."""
        return (
            self._constant("no_totals", np.zeros(LENGTHS[0], np.float32)),
            self._constant("no_peaks", np.full(LENGTHS[1], -np.inf, np.float32)),
            self._constant("no_samples", np.zeros(SAMPLES, np.float32)),
        )

    def _put(self, scope: Scope, op: str, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Variable:
        out = self._graph.variable("sketch")
        self._graph.node(scope, op, inputs, [out], attrs=dict(attrs))
        return out

    def _variables(self) -> Parts:
        return _typed(*(self._graph.variable("sketch") for _ in LENGTHS))

    def _constant(self, name: str, values: Array) -> Constant:
        """A constant of the main graph, which every body can read."""
        if name not in self._constants:
            self._constants[name] = self._graph.constant(self._graph.main, f"sketch_{name}", values)
        return self._constants[name]


def _typed(*parts: Variable) -> Parts:
    """The parts of a sketch, with their types stated: bodies need that."""
    for part, length in zip(parts, LENGTHS, strict=True):
        part.dtype, part.shape = np.dtype(np.float32), [length]
    return cast(Parts, parts)


def _pad(tensors: Any, length: int) -> None:
    """State what was left out at the end of a node's inputs or outputs."""
    while len(tensors) < length:
        tensors.append(Variable(""))


def _insert(tensors: Any, position: int, added: Sequence[Any]) -> None:
    for offset, each in enumerate(added):
        tensors.insert(position + offset, each)


def _places() -> Array:
    """(2048,) int64: times the number of elements, over ``_parts``, the positions that samples are taken from.

    A constant step would meet the same few channels again and again.
    """
    jitter = np.random.default_rng(0).integers(0, JITTER, SAMPLES)
    return np.arange(SAMPLES, dtype=np.int64) * JITTER + jitter


def _parts() -> Array:
    return np.array([SAMPLES * JITTER], np.int64)
