"""Graphs and functions compiled to programs: names become places, constants are computed once.

    graph(x) -> y {c = Constant(), d = Neg(c), y = Add(x, d)}        becomes        [None, x, d, y], 3 = Add(1, 2)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper

from onnxcomp.training.torch_graph.foreign import foreign_rule
from onnxcomp.training.torch_graph.fusing import ChainFuser
from onnxcomp.training.torch_graph.program import NOTHING, REFUSALS, Frame, NodeStep, Program, finished
from onnxcomp.training.torch_graph.rule import Call, Draws, TorchRule, plain_domain
from onnxcomp.training.torch_graph.rule_table import RULES
from onnxcomp.training.torch_graph.values import to_torch

MOST_FOLDED = 2**28  # bytes of a constant that is computed once: more is computed again at every run
MOST_SETTINGS = 64  # elements of a constant that may be a shape or the like
SEED = 15_000_000


@dataclass(frozen=True)
class Around:
    """What all graphs of a model share. kinds: ONNX's types by name, of what torch has no type for.

    read: the values of a tensor. device: where it is computed. expand: the rule of an operator that ONNX defines by
    others, None for one that it does not.
    """

    read: Callable[[TensorProto], Any]
    device: str
    draws: Draws
    kinds: Mapping[str, int]
    expand: Callable[[NodeProto, int], TorchRule | None]


class NamePlaces:
    """The names of one graph, with the scopes around it."""

    def __init__(self, outer: NamePlaces | None = None) -> None:
        self.places: dict[str, int] = {"": NOTHING}
        self.start: Frame = [None]
        self.constant: set[int] = {NOTHING}
        self.captured: list[tuple[int, int]] = []
        self._outer = outer

    def define(self, name: str, value: Any = None, *, constant: bool = False) -> int:
        """A new place for a name, with its value if that is a constant."""
        place = len(self.start)
        self.start.append(value)
        if name:
            self.places[name] = place
        if constant:
            self.constant.add(place)
        return place

    def knows(self, name: str) -> bool:
        """Whether the name is one of this or an outer scope."""
        return name in self.places or (self._outer is not None and self._outer.knows(name))

    def place(self, name: str) -> int:
        """Where the value of a name is; what comes from an outer scope gets a place here."""
        if name in self.places:
            return self.places[name]
        if self._outer is None or not self._outer.knows(name):
            raise ValueError(f"no node before it makes {name!r}")
        there = self._outer.place(name)
        if there in self._outer.constant:
            return self.define(name, self._outer.start[there], constant=True)
        here = self.define(name)
        self.captured.append((there, here))
        return here


def compile_graph(
    graph: GraphProto,
    opsets: Mapping[str, int],
    around: Around,
    *,
    outer: NamePlaces | None = None,
    free: Collection[str] = (),
) -> tuple[Program, NamePlaces]:
    """The program of a graph and where its names are; ``free``: initializers that come anew with every run."""
    scope = NamePlaces(outer)
    inputs = [each.name for each in graph.input]
    for tensor in graph.initializer:
        value = None if tensor.name in free else kept(around.read(tensor), around)
        scope.define(tensor.name, value, constant=tensor.name not in free and tensor.name not in inputs)
    for sparse in graph.sparse_initializer:
        scope.define(sparse.values.name, kept(dense(sparse, around.read), around), constant=True)
    given = tuple(scope.places[name] if name in scope.places else scope.define(name) for name in inputs)
    steps = _steps(graph.node, opsets, around, scope)
    results = tuple(scope.place(each.name) for each in graph.output)
    steps = ChainFuser(steps, scope.start, scope.constant, results).fused()
    return finished(Program(steps, scope.start, given, results, tuple(scope.captured))), scope


def compile_function(function: FunctionProto, call: Call, around: Around) -> Program:
    """The program of a function's body as a node calls it: with the node's attributes for those that it refers to."""
    scope = NamePlaces()
    given = tuple(scope.define(each) for each in function.input)
    stated = {each.name: each for each in (*function.attribute_proto, *call.node.attribute)}
    opsets = {plain_domain(each.domain): each.version for each in function.opset_import} or {"": call.opset}
    steps = _steps([_referring(each, stated) for each in function.node], opsets, around, scope)
    results = tuple(scope.places.get(each, NOTHING) for each in function.output)  # some are made on demand only
    return finished(Program(steps, scope.start, given, results))


def _steps(nodes: Iterable[NodeProto], opsets: Mapping[str, int], around: Around, scope: NamePlaces) -> list[NodeStep]:
    """The nodes as steps, those of constants computed at once and left out."""
    steps = []
    for node in nodes:
        step = _step(node, opsets, around, scope)
        if not _folded(step, scope):
            steps.append(step)
    return steps


def _step(node: NodeProto, opsets: Mapping[str, int], around: Around, scope: NamePlaces) -> NodeStep:
    domain = plain_domain(node.domain)
    graphs = {each.name: each.g for each in node.attribute if each.HasField("g")}
    opset = opsets.get(domain, 1)
    bodies = {name: compile_graph(each, opsets, around, outer=scope)[0] for name, each in graphs.items()}
    inputs = tuple(scope.place(each) for each in node.input)
    call = Call(
        node, domain, opset, attributes_of(node, around), around.device, _seed(node, scope), around.draws,
        len(node.output), tuple(around.kinds.get(each, 0) for each in node.input),
        tuple(around.kinds.get(each, 0) for each in node.output),
    )  # fmt: skip
    outputs = tuple(scope.define(each) for each in node.output)
    return NodeStep(call, rule_of(node, opset, around), inputs, outputs, bodies)


def rule_of(node: NodeProto, opset: int, around: Around) -> TorchRule:
    """The operator's own rule, that of its definition by other operators, or ONNX Runtime's."""
    domain = plain_domain(node.domain)
    return RULES.get((domain, node.op_type)) or around.expand(node, opset) or foreign_rule(node)


def _seed(node: NodeProto, scope: NamePlaces) -> int:
    """The node's seed: what its attribute says, or its place."""
    stated = next((each for each in node.attribute if each.name == "seed"), None)
    if stated is None:
        return SEED + len(scope.start)
    return int(stated.i if stated.type == AttributeProto.INT else stated.f)


def _folded(step: NodeStep, scope: NamePlaces) -> bool:
    """Whether the step's values are constants; they are put in their places then."""
    if step.rule.is_random or not scope.constant.issuperset(step.reads()):
        return False
    try:
        with torch.no_grad():
            made = step.compute(scope.start)
    except REFUSALS:  # it fails only if it is reached: a branch that is never taken may be wrong
        return False
    values = made if isinstance(made, tuple) else (made,)
    if sum(each.nbytes for each in values if isinstance(each, torch.Tensor)) > MOST_FOLDED:
        return False
    for place, value in zip(step.outputs, values, strict=False):
        scope.start[place] = value
        scope.constant.add(place)
    return True


def attributes_of(node: NodeProto, around: Around) -> dict[str, Any]:
    """The node's attributes, tensors as torch's, without subgraphs."""
    found: dict[str, Any] = {}
    for each in node.attribute:
        if each.HasField("t"):
            found[each.name] = kept(around.read(each.t), around)
        elif each.HasField("sparse_tensor"):
            found[each.name] = kept(dense(each.sparse_tensor, around.read), around)
        elif each.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            found[each.name] = _decoded(helper.get_attribute_value(each))
    return found


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    return [_decoded(each) for each in value] if isinstance(value, list) else value


def kept(values: Any, around: Around) -> Any:
    """A constant as a tensor: on the device, but on the CPU what may be a shape, axes or a condition."""
    is_setting = values.dtype.kind in "ib" and values.size <= MOST_SETTINGS
    return to_torch(values, "cpu" if is_setting else around.device)


def dense(sparse: SparseTensorProto, read: Callable[[TensorProto], Any]) -> Any:
    """The values of a sparse tensor in full."""
    values, indices = torch.as_tensor(read(sparse.values)), torch.as_tensor(read(sparse.indices))
    made = torch.zeros(tuple(sparse.dims), dtype=values.dtype)
    made[tuple(indices.T) if indices.dim() == 2 else torch.unravel_index(indices, made.shape)] = values
    return made.numpy()


def _referring(node: NodeProto, stated: Mapping[str, AttributeProto]) -> NodeProto:
    """A function's node with the attributes of the call in place of references to them."""
    if not any(each.ref_attr_name or each.HasField("g") for each in node.attribute):
        return node
    made = NodeProto()
    made.CopyFrom(node)
    del made.attribute[:]
    for each in node.attribute:
        if not each.ref_attr_name:
            kept = made.attribute.add()
            kept.CopyFrom(each)
            if each.HasField("g"):
                bodies: Sequence[NodeProto] = [_referring(inner, stated) for inner in each.g.node]
                del kept.g.node[:]
                kept.g.node.extend(bodies)
        elif each.ref_attr_name in stated:
            named = made.attribute.add()
            named.CopyFrom(stated[each.ref_attr_name])
            named.name = each.name
    return made
