"""Decode compact storage: what ``store-compact`` wrote as nodes over constants becomes a constant again.

    W = Reshape(Gather(table, Cast(bytes)), shape)   ->   W = constant

A decoder is known by what ``graph.decoders`` writes: its nodes have no names and the forms of ``decoder_steps``, what
they read is called ``_0``, ``_1``, ... Nodes of the user's that compute from constants are left as they are.
"""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.stored.decoding import Decoders
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.encoding import same_bits


def expand(model: Model) -> Model:
    """The model with every decoder replaced by the plain tensor that it computes; the model itself if it has none."""
    graph = open_graph(model)
    found = list(Decoders(graph).computed())
    if not found:
        return model
    for each in found:
        output = each.node.outputs[0]
        plain = Constant(output.name, each.values, graph.model)
        plain.as_node = each.scope.kind == "function"
        plain.was_used = True
        each.scope.constants.append(plain)
        graph.replace_reads(output, plain)
        for scope in graph.scopes:
            scope.graph.outputs = [plain if out is output else out for out in scope.graph.outputs]
    return close_graph(graph)


def differing_constants(before: Model, after: Model) -> list[str]:
    """The constants of ``before`` that ``after`` computes by a decoder that gives other values, by their keys."""
    earlier = constants_by_key(open_graph(before))
    decoders = Decoders(open_graph(after))
    different = []
    for scope, node in decoders.outputs():
        key = scope.key(node.outputs[0].name)
        if key in earlier:
            values = decoders.value_or_none(node.outputs[0])
            if values is None or not same_bits(np.asarray(earlier[key].values), values):
                different.append(key)
    return different
