"""Follow the channels of every tensor through a model."""

from __future__ import annotations

from onnxcomp.graph.channels.flow import ChannelFlow
from onnxcomp.graph.channels.groups import Channels
from onnxcomp.graph.channels.rules import RULES
from onnxcomp.graph.infer.shapes import infer_shapes
from onnxcomp.graph.ir.reader import Graph


def trace_channels(graph: Graph, *, through_bounds: bool = False) -> Channels:
    """The channels of a model's tensors, and which of them can be scaled.

    through_bounds: take a Clip between other bounds than zero as one that can get a bound for each channel.
    """
    flow = ChannelFlow(graph, infer_shapes(graph, computed=True), through_bounds)
    flow.through(RULES)
    return flow.channels
