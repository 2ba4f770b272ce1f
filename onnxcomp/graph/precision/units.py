"""Groups of tensors that an operator, or the border of a subgraph, forces to share a float type.

    MatMul(x, w) -> y                 one unit: reads x and w, writes y
    Cast <to = FLOAT> (x) -> y        two: one reads x, the other writes y
    Loop(n, c, s) -> t, body: a -> b  one: reads s and b, writes a and t

Every float tensor is written by one unit at most; what no unit writes or reads stays as it is. So each unit can be
given another float type on its own, with Casts where neighbours differ, and the graph stays valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx import AttributeProto, TensorProto

from onnxcomp.graph.infer.element_types import GENERATED, ElementTypes, function_scopes, local_functions
from onnxcomp.graph.infer.op_schemas import FLOAT, allowed, ports, schema_of, takes_only_tensors, type_name
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import is_onnx, node_key, trains
from onnxcomp.graph.ir.reader import Graph, Scope, subgraphs_of
from onnxcomp.operators import LINEAR, RECURRENT

QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
# ONNX Runtime (1.32) opens a model that scatters short floats with a reduction, and fails when it runs.
SCATTERS = ("ScatterElements", "ScatterND")
MULTIPLYING = LINEAR | RECURRENT | {"Einsum", "Attention", "DeformConv"}
# Their results are the bytes of their inputs, or nearly: they gain nothing by themselves.
FORM_ONLY = frozenset({
    "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "CastLike", "If", "Loop", "Scan", "Constant",
    "ConstantOfShape",
})  # fmt: skip
PRODUCT_GAIN, GAIN = 100, 2  # in units of which a Cast costs CAST_COST

Loads = Callable[[Node, Scope, frozenset[Any], int], bool]


@dataclass(frozen=True)
class Read:
    """A place where a tensor is read: an input of a node, or an output of a scope's graph."""

    scope: Scope
    node: Node | None
    index: int

    @property
    def tensor(self) -> Any:
        return self.scope.graph.outputs[self.index] if self.node is None else self.node.inputs[self.index]

    @property
    def place(self) -> tuple[int, int]:
        """What tells it from all other places."""
        return (id(self.scope) if self.node is None else id(self.node), self.index)

    def put(self, tensor: Any) -> None:
        """Read another tensor here."""
        if self.node is None:
            self.scope.graph.outputs[self.index] = tensor
        else:
            self.node.inputs[self.index] = tensor


@dataclass(eq=False)
class FloatUnit:
    """Places and tensors of one float type; ``attribute`` states that type where the node has to say it."""

    key: str
    scope: Scope
    node: Node | None
    gain: int
    reads: list[Read] = field(default_factory=list)
    writes: list[Any] = field(default_factory=list)
    attribute: str | None = None

    @property
    def op(self) -> str:
        return "" if self.node is None else str(self.node.op)

    @property
    def tensors(self) -> list[Any]:
        """All that it reads and writes."""
        return [*(each.tensor for each in self.reads), *self.writes]

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which it can be excluded: its node's, and those of the constants that it reads."""
        constants = [each.tensor for each in self.reads if isinstance(each.tensor, Constant)]
        return (self.key, *(self.scope.key(each.name) for each in constants))


@dataclass
class FloatUnits:
    """All units of a graph, and for each node without one why it has none."""

    found: list[FloatUnit]
    left: dict[str, str]


def float_units(graph: Graph, types: ElementTypes, short: int, loads: Loads) -> FloatUnits:
    """What can take the element type ``short`` in the main graph and its subgraphs.

    loads: whether the target opens a node whose given tensors are of that type instead of float.
    """
    maker = _Maker(graph, types, short, loads)
    found: list[FloatUnit] = []
    left: dict[str, str] = {}
    functions = function_scopes(graph)
    for scope in graph.scopes:
        if scope in functions:
            continue
        for node in scope.graph.nodes:
            made = maker.of(scope, node)
            if isinstance(made, str):
                left[node_key(scope, node)] = made
            else:
                found.extend(made)
    return FloatUnits(found, left)


def all_reads(graph: Graph) -> Iterator[Read]:
    """Every place where the main graph and its subgraphs read a tensor."""
    functions = function_scopes(graph)
    for scope in graph.scopes:
        if scope in functions:
            continue
        for node in scope.graph.nodes:
            yield from (Read(scope, node, index) for index, each in enumerate(node.inputs) if each.name)
        yield from (Read(scope, None, index) for index in range(len(scope.graph.outputs)))


class _Maker:
    """Makes the units of one node after another."""

    def __init__(self, graph: Graph, types: ElementTypes, short: int, loads: Loads) -> None:
        self._graph = graph
        self._types = types
        self._short = short
        self._loads = loads
        self._functions = local_functions(graph)
        self._bodies = {id(scope.graph): scope for scope in graph.scopes}

    def of(self, scope: Scope, node: Node) -> list[FloatUnit] | str:
        """The node's units; none for one without floats, and the reason for one that has to keep them."""
        if not any(self._is_float(each) for each in (*node.inputs, *node.outputs)):
            return [] if not subgraphs_of(node) else self._borders(scope, node)
        if (node.domain or "", node.op) in self._functions:
            return "it calls a local function, whose body has no types"
        if is_onnx(node, *QUANTIZED) or self._is_quantized(node):
            return "it belongs to a quantized pattern"
        if subgraphs_of(node):
            return self._borders(scope, node)
        schema = schema_of(node, scope.opset)
        if schema is None:
            return self._contributed(scope, node)
        if not takes_only_tensors(schema):
            return "it handles more than tensors"
        if is_onnx(node, *SCATTERS) and node.attrs.get("reduction", "none") != "none":
            return f"{node.op} adds up in float32 only, which shows when it runs"
        if is_onnx(node, "BatchNormalization") and trains(node):
            return "it updates its statistics"
        return self._by_schema(scope, node)

    def _is_float(self, tensor: Any) -> bool:
        return bool(tensor.name) and self._types.of(tensor) == FLOAT

    def _is_quantized(self, node: Node) -> bool:
        """Whether it stands between quantizing nodes: a kernel for integers may take its place."""
        makers = [maker for each in node.inputs for maker in each.inputs if not isinstance(each, Constant)]
        readers = [reader for each in node.outputs for reader in each.outputs]
        return any(is_onnx(each, "DequantizeLinear") for each in makers) or any(
            is_onnx(each, "QuantizeLinear", "DynamicQuantizeLinear") for each in readers
        )

    def _by_schema(self, scope: Scope, node: Node) -> list[FloatUnit] | str:
        schema = schema_of(node, scope.opset)
        assert schema is not None
        short, generated = type_name(self._short), GENERATED.get(node.op) if is_onnx(node) else None
        given = [each for each in ports(node, schema) if self._is_float(each.tensor)]
        takes = [each for each in given if short in allowed(schema, each.kind)]
        bound = {each.kind for each in takes if each.is_input}
        own = [each for each in takes if each.is_input or (each.kind in bound and generated is None)]
        units = [self._unit(scope, node, own)] if own else []
        if generated and any(not each.is_input for each in takes):
            units.append(self._unit(scope, node, [each for each in takes if not each.is_input], generated))
        units = [each for each in units if each.tensors]
        if not units:
            return f"{node.op} takes no {short} at opset {scope.opset}"
        tensors = frozenset(tensor for each in units for tensor in each.tensors)
        if not self._loads(node, scope, tensors, self._short):
            return f"the target has no {node.op} for {short}"
        return units

    def _unit(self, scope: Scope, node: Node, given: list[Any], attribute: str | None = None) -> FloatUnit:
        reads = [Read(scope, node, each.index) for each in given if each.is_input]
        writes = [each.tensor for each in given if not each.is_input]
        return FloatUnit(node_key(scope, node), scope, node, _gain(node), reads, writes, attribute)

    def _contributed(self, scope: Scope, node: Node) -> list[FloatUnit] | str:
        """A node of ONNX Runtime's own operators: all its floats change type, if it loads so."""
        written = self._types.written(node, scope, self._short)
        if written is None:
            return f"{node.domain} {node.op} does not load with {type_name(self._short)}"
        reads = [Read(scope, node, index) for index, each in enumerate(node.inputs) if self._is_float(each)]
        return [FloatUnit(node_key(scope, node), scope, node, PRODUCT_GAIN, reads, written)]

    # --- borders of subgraphs ---

    def _borders(self, scope: Scope, node: Node) -> list[FloatUnit] | str:
        """One unit for each float that crosses into or out of the node's subgraphs."""
        if not is_onnx(node, "If", "Loop", "Scan") or (node.op == "Scan" and scope.opset < 9):
            return f"{node.op} has a body that must keep its types"
        crossings = _crossings(node, [self._bodies[id(each)] for each in subgraphs_of(node)], scope)
        units = []
        for reads, writes in crossings:
            unit = FloatUnit(node_key(scope, node), scope, node, 0, reads, [each for each in writes if each.name])
            if unit.tensors and all(self._types.of(each) == FLOAT for each in unit.tensors):
                units.append(unit)
        return units


Crossing = tuple[list[Read], list[Any]]


def _crossings(node: Node, bodies: list[Scope], scope: Scope) -> list[Crossing]:
    """What is read and what is written together at the border of an If, Loop or Scan."""
    if node.op == "If":
        return [([Read(body, None, k) for body in bodies], [out]) for k, out in enumerate(node.outputs)]
    body = bodies[0]
    # A Loop's body takes the iteration and the condition first, and gives the condition first.
    skipped, given = (2, 1) if node.op == "Loop" else (0, 0)
    scanned = node.attrs["num_scan_inputs"] if node.op == "Scan" else 0
    states = len(body.graph.inputs) - skipped - scanned
    found: list[Crossing] = []
    for k in range(states + scanned):
        reads, writes = [Read(scope, node, skipped + k)], [body.graph.inputs[skipped + k]]
        if k < states:
            reads.append(Read(body, None, given + k))
            writes.extend(node.outputs[k : k + 1])
        found.append((reads, writes))
    for k in range(states, len(body.graph.outputs) - given):
        found.append(([Read(body, None, given + k)], list(node.outputs[k : k + 1])))
    return found


def _gain(node: Node) -> int:
    return PRODUCT_GAIN if node.op in MULTIPLYING else 0 if node.op in FORM_ONLY else GAIN


def state_type(unit: FloatUnit, data_type: int) -> None:
    """Let the unit's node say that what it generates is of this type."""
    node, name = unit.node, unit.attribute
    if node is None or name is None:
        return
    if name != "value":
        node.attrs[name] = data_type
        return
    held = node.attrs.get("value")
    filled = held.t if isinstance(held, AttributeProto) else None
    node.attrs["value"] = _filled_with(filled, data_type)


def _filled_with(old: TensorProto | None, data_type: int) -> AttributeProto:
    """The attribute ``value`` of a ConstantOfShape, in another type; zero where none was stated."""
    import numpy as np
    from onnx import helper, numpy_helper

    value = np.zeros(1, np.float32) if old is None else numpy_helper.to_array(old)
    made = numpy_helper.from_array(value.astype(helper.tensor_dtype_to_np_dtype(data_type)))
    return AttributeProto(name="value", type=AttributeProto.TENSOR, t=made)


Labels = Mapping[FloatUnit, bool]
