"""Channels between weights are scaled so that the channels of each weight have like ranges.

    W2 relu(W1 x + b)    becomes    (W2 S) relu(S^-1 W1 x + S^-1 b),  S diagonal and positive

No output changes and no byte is saved: a grid for the whole weight, or for a whole activation, then serves all of its
channels, so that fewer bits do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, parameter
from onnxcomp.graph.channels.groups import ChannelGroup, Channels
from onnxcomp.graph.channels.scaling import largest_factor, may_scale, scale_channels
from onnxcomp.graph.channels.trace import trace_channels
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.numerics.channels.cross_layer_equalization import Floats, Link, Peaks, equalizing_factors
from onnxcomp.operators import LINEAR

LEAST_GAIN = 1.02  # factors nearer to 1 change nothing that 8 bits could tell


@dataclass(frozen=True, kw_only=True)
class EqualizeRanges(Pass):
    """Scale channels between weights so that all of a weight's channels have like ranges.

    Follows channels through activations that are homogeneous (Relu, LeakyRelu, PRelu), pooling, padding with zeros,
    reshaping, joining and adding, into all the weights that read them; depthwise convolutions are a weight like any
    other. Channels that an output, a subgraph or any other operator reads stay as they are, and so do weights that
    are shared, or on levels already. It prepares for quantization and gains nothing alone.

    Deviations from the paper: tensors that are added to each other are scaled as one; several weights on one side
    count by the widest; the factors of a set of channels have the geometric mean 1; ReLU6 is not replaced by ReLU
    but left, or given one bound a channel (``bounds``); absorbing high biases changes outputs and is a pass of its
    own, ``absorb-biases``.
    """

    effect = Effect(shrinks=("bytes",), exact=Exact.OUTPUTS, rounding=True)
    paper = "https://arxiv.org/abs/1906.04721"
    prepared_by = ("inline-functions", "fold-constants", "fuse-batch-norm", "fuse-pad")

    bounds: bool = parameter(False, help="scale through Clip, too, which gets a bound for each channel (slower)")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        channels = trace_channels(graph, through_bounds=self.bounds)
        groups = [each for each in channels.groups() if may_scale(each, context.selects, context.excludes)]
        count = channels.sets.count
        found = equalizing_factors(_links(channels, groups), count, largest=largest_factor(groups))
        changed = [each for each in groups if _gains(found[each.channels])]
        factors = np.ones(count)
        for group in changed:
            factors[group.channels] = found[group.channels]
            low, high = found[group.channels].min(), found[group.channels].max()
            what = f"{group.channels.size} channels divided by {low:.3g} to {high:.3g}"
            outcome.change(group.name, what, readers=[each.key for each in group.consumers])
        if changed:
            outcome.origins.update(scale_channels(channels, factors))
        noted = {each.name for each in changed}
        for source in channels.sources:
            reason = channels.reason(source)
            if reason and source.node.op in LINEAR and source.key not in noted and context.selects(source.key):
                outcome.skip(source.key, reason)
        return outcome


def _gains(factors: Floats) -> bool:
    return bool(np.abs(np.log(factors)).max(initial=0.0) > np.log(LEAST_GAIN))


def _links(channels: Channels, groups: list[ChannelGroup]) -> list[Link]:
    """The groups that have weights on both sides, as arrays."""
    whole = [each for each in groups if each.producers and each.consumers]
    products = dict.fromkeys(each for group in whole for each in (*group.producers, *group.consumers))
    roots = channels.sets.roots
    peaks = {each: Peaks(each.peaks(), roots(each.rows), roots(each.columns)) for each in products}
    return [
        Link(each.channels, [peaks[p] for p in each.producers], [peaks[c] for c in each.consumers]) for each in whole
    ]
