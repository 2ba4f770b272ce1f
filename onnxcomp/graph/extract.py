"""The part of a model that some of its tensors come from."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from onnx import GraphProto, ModelProto, NodeProto

from onnxcomp.graph.ir.writer import copy_fields
from onnxcomp.model import Model


def up_to(model: Model, names: Collection[str]) -> Model:
    """The model with the tensors of its main graph called ``names`` as its outputs, less what does not lead to them.

    All inputs stay, and the outputs have no types: ONNX Runtime finds them itself. Without names, the whole model.
    """
    if not names:
        return model
    source = model.proto.graph
    nodes, read = _on_the_way(source, names)
    proto = ModelProto()
    copy_fields(model.proto, proto, ("graph",))
    graph = proto.graph
    copy_fields(source, graph, ("node", "input", "initializer", "sparse_initializer", "output"))
    graph.node.extend(nodes)
    graph.initializer.extend(each for each in source.initializer if each.name in read)
    graph.sparse_initializer.extend(each for each in source.sparse_initializer if each.values.name in read)
    unread = {each.name for each in source.initializer} - read  # old models state their constants as inputs, too
    graph.input.extend(each for each in source.input if each.name not in unread)
    for name in names:
        graph.output.add(name=name)
    return model.with_proto(proto)


def _on_the_way(graph: GraphProto, names: Collection[str]) -> tuple[list[NodeProto], set[str]]:
    """The nodes that the tensors come from, in order, and the names of all that these read, the tensors included."""
    read, taken = set(names), []
    for node in reversed(graph.node):
        if not read.isdisjoint(node.output):
            taken.append(node)
            read.update(read_by(node))
    return taken[::-1], read


def read_by(node: NodeProto) -> Iterator[str]:
    """What a node reads, with all names in its subgraphs: some of them are those of the graph around."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in body.node:
                yield from read_by(inner)
            yield from (each.name for each in body.output)
