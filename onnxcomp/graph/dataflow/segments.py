"""A graph cut in segments, each of which computes what is wanted next from what the ones before it left.

    x -> a -> b -> c        wanted in turn: a, then b      segments: x -> a,  a -> b      c is in none
          `--------^

What is computed from constants alone is in every segment that reads it, with the constants as they are when it runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import FunctionProto, ModelProto, SparseTensorProto, TensorProto, ValueInfoProto

from onnxcomp.graph.ir.nodes import Constant, Node, ProtoValues, Variable
from onnxcomp.graph.ir.query import is_random
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.scopes import inner_reads, subgraphs_of
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.graph.ir.writer import ProtoWriter, write_opsets
from onnxcomp.model import Model
from onnxcomp.operators import ONNX_DOMAINS
from onnxcomp.tensors import make_tensor


@dataclass(frozen=True)
class Segment:
    """Nodes in order, the constants that they read, the names of the tensors that they start from and give."""

    nodes: tuple[Node, ...] = ()
    constants: tuple[Constant, ...] = ()
    feeds: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """What is done for the tensors that are wanted together.

    advance: computes what of them is settled, and what later stages read. ahead: what of them depends on weights that
    change in this stage or later, from what was there before the stage or is after ``advance``; it leaves nothing.
    kept: the names of the tensors computed so far that later stages read.
    """

    wanted: tuple[str, ...]
    advance: Segment
    ahead: Segment
    kept: tuple[str, ...]


def cut(graph: Graph, wanted: Sequence[Collection[str]], changes: Mapping[str, int]) -> list[Stage]:
    """The stages that compute tensors of the main graph, by name, in turn.

    changes: the stage in which each of some constants changes for the last time; others stay.
    Raises KeyError for a name that is no tensor of the main graph.
    """
    return _Cutting(graph, changes).stages([sorted(each) for each in wanted])


def segment_model(graph: Graph, segment: Segment, infos: Mapping[str, ValueInfoProto]) -> Model:
    """The segment as a model of its own, with the constants as they are now; its size is that of the segment.

    infos: the types of its feeds; those that are inputs with a value of their own have that.
    """
    proto = ModelProto()
    proto.ir_version = max(4, graph.ir_version)  # from where on constants need not be inputs
    write_opsets(graph, proto)
    writer = ProtoWriter(graph)
    for scope in graph.scopes:
        if scope.kind == "function":
            writer.write_function(scope, proto.functions.add())
    body = proto.graph
    body.name = "segment"
    body.node.extend(writer._node(node) for node in segment.nodes)
    body.initializer.extend(_initializer(writer, each) for each in segment.constants)
    for tensor in graph.main.overridable:
        if overridable_name(tensor) in segment.feeds:
            (body.initializer if isinstance(tensor, TensorProto) else body.sparse_initializer).add().CopyFrom(tensor)
    body.input.extend(infos[name] for name in segment.feeds if name in infos)
    for name in segment.outputs:
        body.output.add(name=name)
    source = graph.model
    return Model(proto, folder=source.folder, scratch=source.scratch)


def overridable_name(tensor: TensorProto | SparseTensorProto) -> str:
    """The name of an input that has a value of its own."""
    return str(tensor.values.name if isinstance(tensor, SparseTensorProto) else tensor.name)


def _initializer(writer: ProtoWriter, constant: Constant) -> TensorProto:
    held = constant._values
    if isinstance(held, ProtoValues) and not isinstance(held.tensor, TensorProto):  # sparse, or behind a decoder
        return make_tensor(constant.name, constant.values)
    return writer._tensor(constant, constant.name)


@dataclass
class _Reads:
    """What a node reads of the main graph, its subgraphs included."""

    computed: list[Variable] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)


class _Cutting:
    """The main graph as lists: nodes are known by their position in a valid order."""

    def __init__(self, graph: Graph, changes: Mapping[str, int]) -> None:
        self._nodes = ordered(graph.main.graph.nodes)
        self._maker = {out: index for index, node in enumerate(self._nodes) for out in node.outputs if out.name}
        self._inputs = {each for each in graph.main.graph.inputs if isinstance(each, Variable)}
        self._own = set(graph.main.constants)
        self._tensors = {each.name: each for each in (*self._inputs, *self._maker)}
        bodies = [scope.origin for scope in graph.scopes if isinstance(scope.origin, FunctionProto)]
        local = {(each.domain, each.name) for each in bodies}
        self._reads: list[_Reads] = []
        self._fixed: list[bool] = []
        self._late: list[int] = []  # the last stage in which something that a node comes from changes, -1 for none
        for node in self._nodes:
            reads = self._read_by(node)
            makers = [self._maker[each] for each in reads.computed if each in self._maker]
            is_plain = node.domain in ONNX_DOMAINS and (node.domain or "", node.op) not in local
            is_plain = is_plain and not is_random(node) and not subgraphs_of(node)
            self._fixed.append(is_plain and all(not self._is_computed(each) for each in reads.computed))
            late = [changes.get(each.name, -1) for each in reads.constants] + [self._late[each] for each in makers]
            self._late.append(max(late, default=-1))
            self._reads.append(reads)

    def _is_computed(self, tensor: Variable) -> bool:
        return tensor not in self._maker or not self._fixed[self._maker[tensor]]

    def _read_by(self, node: Node) -> _Reads:
        found = _Reads()
        for each in dict.fromkeys((*node.inputs, *inner_reads(node))):
            if each in self._maker or each in self._inputs:
                found.computed.append(each)
            elif each in self._own:
                found.constants.append(each)
        return found

    def stages(self, wanted: Sequence[Sequence[str]]) -> list[Stage]:
        done: set[int] = set()
        steps: list[tuple[list[int], list[int]]] = []  # nodes of advance and of ahead
        for index, names in enumerate(wanted):
            late = [name for name in names if self._is_late(self._tensors[name], index)]
            advance = self._needed([self._tensors[each] for each in names if each not in late], done)
            done.update(advance)
            steps.append((advance, self._needed([self._tensors[each] for each in late], done)))
        last = self._last_use(wanted, steps)
        found: list[Stage] = []
        live: dict[Variable, None] = {}
        for index, (names, (advance, ahead)) in enumerate(zip(wanted, steps, strict=True)):
            made = [out for node in advance for out in self._nodes[node].outputs if out.name]
            beyond = {each for node in ahead for each in self._reads[node].computed}
            outputs = [each for each in made if last.get(each, -1) > index or each in beyond or each.name in names]
            live = {each: None for each in (*live, *outputs) if last.get(each, -1) > index}
            given = [each.name for node in ahead for each in self._nodes[node].outputs if each.name in names]
            found.append(
                Stage(
                    tuple(names),
                    self._segment(advance, [each.name for each in outputs]),
                    self._segment(ahead, [*given, *self._fixed_of(names)]),
                    tuple(each.name for each in live),
                )
            )
        return found

    def _is_late(self, tensor: Variable, stage: int) -> bool:
        return tensor in self._maker and self._late[self._maker[tensor]] >= stage

    def _fixed_of(self, names: Sequence[str]) -> list[str]:
        """Those of the names that are computed from constants alone."""
        makers = {name: self._maker.get(self._tensors[name]) for name in names}
        return [name for name, maker in makers.items() if maker is not None and self._fixed[maker]]

    def _needed(self, tensors: Iterable[Variable], done: Collection[int]) -> list[int]:
        """The nodes, in order, that tensors come from beyond those done and what is computed from constants."""
        found: set[int] = set()
        waiting = list(tensors)
        while waiting:
            maker = self._maker.get(waiting.pop())
            if maker is None or maker in found or maker in done or self._fixed[maker]:
                continue
            found.add(maker)
            waiting.extend(self._reads[maker].computed)
        return sorted(found)

    def _last_use(
        self, wanted: Sequence[Sequence[str]], steps: Sequence[tuple[list[int], list[int]]]
    ) -> dict[Variable, int]:
        """The last stage in which each tensor is read or wanted."""
        last: dict[Variable, int] = {}
        for index, (names, parts) in enumerate(zip(wanted, steps, strict=True)):
            read = [each for part in parts for node in part for each in self._reads[node].computed]
            for each in (*read, *(self._tensors[name] for name in names)):
                last[each] = index
        return {each: stage for each, stage in last.items() if not self._is_free(each)}

    def _is_free(self, tensor: Variable) -> bool:
        """Whether the tensor need not be kept: an input, or computed from constants alone."""
        return tensor not in self._maker or self._fixed[self._maker[tensor]]

    def _segment(self, own: Sequence[int], outputs: Sequence[str]) -> Segment:
        nodes = sorted({*own, *self._fixed_behind(own, outputs)})
        made = {out for node in nodes for out in self._nodes[node].outputs}
        reads = [self._reads[node] for node in nodes]
        feeds = dict.fromkeys(each.name for part in reads for each in part.computed if each not in made)
        constants = dict.fromkeys(each for part in reads for each in part.constants)
        return Segment(tuple(self._nodes[node] for node in nodes), tuple(constants), tuple(feeds), tuple(outputs))

    def _fixed_behind(self, own: Sequence[int], outputs: Sequence[str]) -> set[int]:
        """The nodes computed from constants alone that some nodes, or outputs, come from."""
        found: set[int] = set()
        waiting = [each for node in own for each in self._reads[node].computed]
        waiting += [self._tensors[name] for name in outputs]
        while waiting:
            maker = self._maker.get(waiting.pop())
            if maker is not None and self._fixed[maker] and maker not in found:
                found.add(maker)
                waiting.extend(self._reads[maker].computed)
        return found
