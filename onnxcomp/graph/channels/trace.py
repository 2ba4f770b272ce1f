"""Follow the channels of every tensor through a model."""

from __future__ import annotations

from onnxcomp.graph.channels.flow import ChannelFlow
from onnxcomp.graph.channels.groups import Channels
from onnxcomp.graph.channels.rules import RULES
from onnxcomp.graph.infer.shapes import infer_shapes
from onnxcomp.graph.ir.query import has_references
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.writer import ordered


def trace_channels(graph: Graph, *, through_bounds: bool = False) -> Channels:
    """The channels of a model's tensors, and which of them can be scaled.

    through_bounds: take a Clip between other bounds than zero as one that can get a bound for each channel.
    """
    flow = ChannelFlow(graph, infer_shapes(graph, computed=True), through_bounds)
    for scope in graph.scopes:  # outer ones first
        flow.enter(scope)
        for node in ordered(scope.graph.nodes):
            rule = RULES.get((node.domain or "", node.op))
            if rule is None or has_references(node) or not rule(flow, node):
                flow.stop(node)
        for tensor in scope.graph.outputs:
            flow.fix(tensor, "it is an output of its graph")
    return flow.channels
