"""Choose which units take the shorter float type, and write Casts where neighbours differ.

    x -> [Conv, Relu: float16] -> [Range: float32]    becomes    x -> Cast -> Conv -> Relu -> Cast -> Range

Which units change is a minimum cut: a Cast costs what it moves, a unit kept in float32 what it would have saved.
Products gain so much that they always change; what stands alone between nodes that cannot does not. One Cast serves
all readers of a tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from onnx import helper

from onnxcomp.graph.infer.op_schemas import FLOAT
from onnxcomp.graph.ir.nodes import Constant, Variable
from onnxcomp.graph.ir.query import is_onnx, producer
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import move_up
from onnxcomp.graph.precision.units import FloatUnit, Read, all_reads, state_type
from onnxcomp.numerics.integers.short_float import DTYPES, rounded
from onnxcomp.numerics.search.min_cut import UNCUT, Edge, minimum_cut

CAST_COST = 3  # reading four bytes and writing two, where an operation saves four of eight


def choose(
    graph: Graph, units: Collection[FloatUnit], kept: Collection[FloatUnit], forced: Collection[FloatUnit]
) -> set[FloatUnit]:
    """The units that change type: ``forced`` ones do, ``kept`` ones do not, and the others as it costs least."""
    number = {unit: index + 2 for index, unit in enumerate(units)}
    short, wide = 0, 1
    edges: list[Edge] = []
    for unit, index in number.items():
        edges.append((short, index, UNCUT if unit in forced else unit.gain))
        if unit in kept:
            edges.append((index, wide, UNCUT))
    count = len(number) + 2
    for writer, readers in _traffic(graph, number, wide):
        # Two points a tensor: one Cast if it is written short and any reader wants it wide, and the other way round.
        edges += [(writer, count, CAST_COST), (count + 1, writer, CAST_COST)]
        edges += [(count, each, UNCUT) for each in readers] + [(each, count + 1, UNCUT) for each in readers]
        count += 2
    side = minimum_cut(count, edges, source=short, sink=wide)
    return {unit for unit, index in number.items() if side[index]}


def _traffic(graph: Graph, number: Mapping[FloatUnit, int], wide: int) -> list[tuple[int, set[int]]]:
    """For each tensor that units write or read: who writes it and who reads it, as points of the cut."""
    writer = {tensor: index for unit, index in number.items() for tensor in unit.writes}
    reader = {read.place: index for unit, index in number.items() for read in unit.reads}
    readers: dict[Any, set[int]] = {}
    for read in all_reads(graph):
        if not isinstance(read.tensor, Constant):
            readers.setdefault(read.tensor, set()).add(reader.get(read.place, wide))
    found = []
    for tensor, indices in readers.items():
        start = writer.get(tensor, wide)
        if indices != {start}:
            found.append((start, indices))
    return found


def write_casts(graph: Graph, changed: set[FloatUnit], name: str) -> None:
    """Give what the units read and write the type ``name``, and cast wherever that meets float32."""
    _CastWriter(graph, name).write(changed)


class _CastWriter:
    """Puts the choice into effect."""

    def __init__(self, graph: Graph, name: str) -> None:
        self._graph = graph
        self._name = name
        self._type = int(helper.np_dtype_to_tensor_dtype(DTYPES[name]))
        self._cast: dict[tuple[Any, Scope, bool], Any] = {}
        self._scopes: dict[Any, Scope] = {}
        for scope in graph.scopes:
            own = [*scope.graph.inputs, *scope.constants, *(out for node in scope.graph.nodes for out in node.outputs)]
            self._scopes.update((each, scope) for each in own)

    def write(self, changed: set[FloatUnit]) -> None:
        for unit in changed:
            state_type(unit, self._type)
        self._state_others(changed)
        short = {tensor for unit in changed for tensor in unit.writes}
        wanting = {read.place for unit in changed for read in unit.reads}
        reads = list(all_reads(self._graph))
        for tensor in short:
            tensor.dtype = DTYPES[self._name]
        self._keep_output_names(short, wanting)
        whole = self._round_constants(reads, wanting)
        other = [each for each in reads if (each.place in wanting) != (each.tensor in short or each.tensor in whole)]
        home = {(each.tensor, each.place in wanting) for each in other if each.scope is self._scopes[each.tensor]}
        for read in other:
            # A Cast that bodies alone read stands in each of them: ONNX Runtime (1.32) loses one outside when it
            # moves Casts together.
            is_short = read.place in wanting
            scope = self._scopes[read.tensor] if (read.tensor, is_short) in home else read.scope
            read.put(self._as(read.tensor, scope, is_short=is_short))

    def _state_others(self, changed: set[FloatUnit]) -> None:
        """A node that takes its type from its input has to say it when only the input changes."""
        stated = {id(unit.node) for unit in changed if unit.attribute}
        for unit in changed:
            if unit.attribute is None and unit.node is not None and id(unit.node) not in stated:
                _state_implied(unit)

    def _keep_output_names(self, short: set[Any], wanting: set[tuple[int, int]]) -> None:
        """A float32 output of the model made by a changed unit is cast under its own name."""
        main = self._graph.main
        for index, tensor in enumerate(list(main.graph.outputs)):
            if tensor not in short or Read(main, None, index).place in wanting or not tensor.inputs:
                continue
            inner = self._graph.variable(f"{tensor.name}_{self._name}", tensor.dtype, tensor.shape)
            maker = tensor.inputs[0]
            position = next(i for i, out in enumerate(maker.outputs) if out is tensor)
            maker.outputs[position] = inner
            self._graph.replace_reads(tensor, inner)
            tensor.dtype = helper.tensor_dtype_to_np_dtype(FLOAT)
            self._graph.node(main, "Cast", [inner], [tensor], attrs={"to": FLOAT})
            self._cast[inner, main, False] = tensor
            self._scopes[inner] = main
            short.discard(tensor)
            short.add(inner)

    def _round_constants(self, reads: list[Read], wanting: set[tuple[int, int]]) -> set[Any]:
        """Round the constants that nothing reads in float32; gives them.

        A constant whose encoding makes it cheap to store keeps its values: a Cast follows it, and is folded.
        """
        wanted: dict[Any, set[bool]] = {}
        for read in reads:
            if isinstance(read.tensor, Constant):
                wanted.setdefault(read.tensor, set()).add(read.place in wanting)
        encoded = self._graph.encodings
        whole = {
            each for each, kinds in wanted.items()
            if kinds == {True} and self._scopes[each].key(each.name) not in encoded
        }  # fmt: skip
        for constant in whole:
            constant.values = rounded(constant.values, self._name)
        return whole

    def _as(self, tensor: Any, scope: Scope, *, is_short: bool) -> Any:
        """The tensor in the other type, cast in this scope."""
        maker = producer(tensor)
        if is_short and maker is not None and is_onnx(maker, "Cast") and maker.inputs[0].dtype == DTYPES[self._name]:
            return maker.inputs[0]
        key = (tensor, scope, is_short)
        if key not in self._cast:
            dtype = DTYPES[self._name] if is_short else helper.tensor_dtype_to_np_dtype(FLOAT)
            suffix = self._name if is_short else "float32"
            shape = None if tensor.shape is None else list(tensor.shape)
            made = self._graph.variable(f"{tensor.name}_{suffix}", dtype, shape)
            first = None
            if isinstance(tensor, Constant):
                move_up(self._scopes[tensor], tensor)
                first = next(iter(scope.graph.nodes), None)
            attrs = {"to": self._type if is_short else FLOAT}
            self._graph.node(scope, "Cast", [tensor], [made], attrs=attrs, before=first)
            self._cast[key] = made
            self._scopes[made] = scope
        return self._cast[key]


def _state_implied(unit: FloatUnit) -> None:
    """Say float32 where the output's type is that of the input as long as nothing is stated."""
    node = unit.node
    if node is None or node.op not in ("EyeLike", "Bernoulli", "RandomNormalLike", "RandomUniformLike"):
        return
    if isinstance(node.outputs[0], Variable) and "dtype" not in node.attrs:
        node.attrs["dtype"] = FLOAT
