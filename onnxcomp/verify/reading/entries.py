"""What to compare where an output only selects or rounds: the float tensors that enter the last such operator.

    y = ArgMax(z)                            y stands or falls by z
    boxes, scores of NonMaxSuppression       as many rows as there are detections; what enters has always as many

An output of labels changes in jumps, one whose length depends on the data cannot be compared element by element.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx import ModelProto, TensorProto, helper

from onnxcomp.graph.dataflow.origins import TensorOrigin
from onnxcomp.graph.dataflow.selections import Entering, Selections
from onnxcomp.graph.ir.functions import written_out
from onnxcomp.graph.ir.reader import shown
from onnxcomp.graph.ir.scopes import Graph
from onnxcomp.memory import uncollected
from onnxcomp.model import Model
from onnxcomp.tensors import FLOAT8_TYPES, SHORT_FLOAT_TYPES
from onnxcomp.verify.reading.makers import Maker, maker_of

MOST_ENTRIES = 16

Place = tuple[str, str, int]
"""An output, an operator, and how many tensors entered that operator before on the way to that output."""


@dataclass(frozen=True)
class LabelEntry:
    """A float tensor of the main graph that enters a selecting or rounding operator.

    output: the graph output that it stands for; outputs: all of them. tensor: its name in the original, with local
    functions written out.
    operator: what it enters. is_direct: no products with weights stand between the operator and the output, so that
    the output is as right as the entry is.
    place: where it is found in other forms of the model.
    """

    output: str
    tensor: str
    operator: str
    is_direct: bool = True
    place: Place = ("", "", 0)
    outputs: tuple[str, ...] = ()


def find_entries(model: Model) -> tuple[LabelEntry, ...]:
    """The entries of all outputs, each tensor once, at most 16: direct ones first, each output's in turn.

    Left out are constants, copies of inputs, and what comes before in subgraphs: there, what enters the subgraph's
    node counts.
    """
    by_output: list[list[LabelEntry]] = []
    reached: dict[str, list[str]] = {}
    for output, found in _placed(model):
        own = []
        for place, each in found:
            if each.tensor.name not in reached:
                own.append(LabelEntry(output, each.tensor.name, each.operator, each.is_direct, place))
            reached.setdefault(each.tensor.name, []).append(output)
        by_output.append(own)
    in_turn = [own[rank] for rank in range(max(map(len, by_output), default=0)) for own in by_output if rank < len(own)]
    chosen = sorted(in_turn, key=lambda entry: not entry.is_direct)[:MOST_ENTRIES]
    return tuple(replace(entry, outputs=tuple(reached[entry.tensor])) for entry in chosen)


def expose(model: Model, entries: Iterable[LabelEntry]) -> tuple[Model, Mapping[str, str]]:
    """A copy of the original, or of a rewrite of it, with the entries as further outputs: output name -> entry.tensor.

    Short floats come as float32. In a rewrite the tensor that enters the same operator on the way to the same output
    is taken, else one of the same name. Entries that neither finds are left out of the mapping.
    """
    working, graph, selections = _selections(model)
    by_place = {place: each.tensor for _, found in _placed(model) for place, each in found}
    by_name = {out.name: out for node in graph.main.graph.nodes for out in node.outputs}
    proto = ModelProto()
    proto.CopyFrom(working.proto)
    shown: dict[str, str] = {}
    for index, entry in enumerate(entries):
        tensor = by_place.get(entry.place, by_name.get(entry.tensor))
        if tensor is not None:
            name = graph.unique_name(f"entry_{index}")
            _show(proto, tensor.name, name, selections.origins.shapes.data_type(tensor))
            shown[name] = entry.tensor
    return working.with_proto(proto), shown


def varies_in_length(model: Model, output: str) -> bool:
    """Whether the shape of a graph output depends on computed values: two forms of the model may give other shapes."""
    _, graph, selections = _selections(model)
    return any(selections.origins.varies(each) for each in graph.main.graph.outputs if each.name == output)


def numbers_not_labels(model: Model, output: str) -> bool:
    """Whether the integers of a graph output are rounded numbers (sound, pixels), not labels, indices or flags."""
    _, graph, selections = _selections(model)
    tensor = next((each for each in graph.main.graph.outputs if each.name == output), None)
    if tensor is None or selections.origins.is_float(tensor):
        return False
    return maker_of(tensor, selections.origins) is Maker.NUMBERS


def _selections(model: Model) -> tuple[Model, Graph, Selections]:
    """The model with local functions written out, opened, and what is selected in it; the model remembers."""
    if _selections not in model.memo:
        working = written_out(model)
        with uncollected():
            graph = shown(working)
            model.memo[_selections] = working, graph, Selections(graph)
    found: tuple[Model, Graph, Selections] = model.memo[_selections]
    return found


def _placed(model: Model) -> Iterator[tuple[str, Sequence[tuple[Place, Entering]]]]:
    """For each output what entered on the way to it in the main graph, with its place."""
    _, graph, selections = _selections(model)
    own: set[Any] = {out for node in graph.main.graph.nodes for out in node.outputs}
    for output in graph.main.graph.outputs:
        counts: dict[str, int] = {}
        found = []
        for each in selections.before(output):
            if each.tensor in own and selections.origins.of(each.tensor) is TensorOrigin.COMPUTED:
                place = (output.name, each.operator, counts.setdefault(each.operator, 0))
                counts[each.operator] += 1
                found.append((place, each))
        yield output.name, found


def _show(proto: ModelProto, tensor: str, name: str, data_type: int) -> None:
    """Add an output of this name that holds a tensor; its shape is left for the runtime to find."""
    if data_type in SHORT_FLOAT_TYPES | FLOAT8_TYPES:
        proto.graph.node.append(helper.make_node("Cast", [tensor], [name], to=TensorProto.FLOAT))
        data_type = TensorProto.FLOAT
    else:
        proto.graph.node.append(helper.make_node("Identity", [tensor], [name]))
    info = proto.graph.output.add(name=name)
    if data_type:
        info.type.tensor_type.elem_type = data_type
