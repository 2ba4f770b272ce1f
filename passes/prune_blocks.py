"""Whole residual blocks go out of a model: what a sum adds to a tensor that hardly changes by it.

    y = x + f(x)    becomes    y = x + c,   c: the mean of f(x), one value a channel

MACs, bytes and latency shrink by all of f; the weights behind it are solved anew for the original's outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.contract import (
    Choice,
    Context,
    Effect,
    Exact,
    Needs,
    Option,
    Outcome,
    Quantity,
    Site,
    SitePass,
    Skip,
    Structure,
    Survey,
    parameter,
)  # fmt: skip
from onnxcomp.contract.solving_anew import solve_anew
from onnxcomp.graph.cutting.blocks import ResidualBlock, residual_blocks
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph, close_graph
from onnxcomp.graph.ir.rewire import bypass
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.runtime import Value

LEAST_POWER = 1e-30
UNSEEN = "the calibration data do not show the mean of what it adds"


@dataclass(frozen=True, kw_only=True)
class PruneBlocks(SitePass):
    """Cut whole residual blocks whose sum is nearly what it is without them.

    A block is all that is computed for one operand of a sum alone: an attention, a feed-forward part, the convolutions
    beside a shortcut. Each is taken out by itself, its mean in its place, to see how much the model's outputs suffer;
    the least harmful go first. Deviations from the paper: blocks instead of whole layers, by what the outputs lose
    instead of the likeness of a block's input and result, and means and least squares make up for what went.
    """

    needs = Needs.CALIBRATION
    effect = Effect(shrinks=("bytes", "latency"), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/2403.03853"
    destroys = frozenset({Structure.ZEROS, Structure.LEVELS, Structure.COMPACT})
    prepared_by = ("inline-functions", "fold-constants", "fuse-batch-norm")
    renews_reference = True
    variants = ({"ratio": 1.0},)

    ratio: float = parameter(0.25, low=0.0, high=1.0, help="share of the blocks that is cut, at least one")
    macs: float | None = parameter(None, low=0.0, high=1.0, help="share of the MACs kept, in place of ratio")
    harm: float | None = parameter(
        None, low=0.0, help="in place of ratio: divergence up to which blocks go, one by one"
    )
    mean: bool = parameter(
        True, help="add a block's mean in its place; false: nothing, which leaves no node and more to the repair"
    )
    repair: bool = parameter(True, help="solve the weights that are left anew")

    def sites(self, graph: Graph, context: Context) -> Survey:
        blocks, skipped = _selected(graph, context)
        total = float(sum(each.count for each in count_macs(graph).values() if each is not None))
        nbytes = float(sum(each.nbytes for scope in graph.scopes for each in scope.constants))
        sites = []
        for each in blocks:
            left = {Quantity.BYTES: nbytes - each.nbytes, Quantity.MACS: total - each.macs}
            options = tuple(Option(fields, left) for fields, _ in self.strengths())
            now = {Quantity.BYTES: nbytes, Quantity.MACS: total}
            sites.append(Site(each.key, tuple(each.constants), now, options))
        return Survey(tuple(sites), tuple(skipped))

    def apply(self, graph: Graph, context: Context) -> Outcome:
        blocks, skipped = _selected(graph, context)
        outcome = self.rewrite(graph, {each.key: {} for each in blocks}, context)
        outcome.skipped[:0] = skipped
        return outcome

    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        outcome = Outcome()
        blocks, _ = _selected(graph, dataclasses.replace(context, include=None))
        means = _means(graph, blocks, context) if blocks else {}
        harms = _harms(graph, [each for each in blocks if each.key in means], means, context)
        gone: set[str] = set()
        for own, names in self.by_fields(choice):
            assert isinstance(own, PruneBlocks)
            gone |= own._chosen(graph, blocks, harms) & names
        dropped: list[ResidualBlock] = []
        outer_first = sorted(blocks, key=lambda block: len(block.nodes), reverse=True)
        for each in (block for block in outer_first if block.key in choice):
            if each.key not in means:
                outcome.skip(each.key, UNSEEN)
            elif each.key not in gone:
                outcome.skip(each.key, "others harm less")
            elif not graph.main.graph.holds(each.sum):
                outcome.skip(each.key, "it goes with another block")
            else:
                each.drop(graph, means[each.key] if self.mean else np.zeros_like(means[each.key]))
                dropped.append(each)
                what = f"a block of {len(each.nodes)} nodes cut"
                outcome.change(each.key, what, error=harms[each.key], macs=each.macs, nbytes=each.nbytes)
        if outcome.changed and self.repair:
            solve_anew(graph, context, outcome)
        for each in dropped if not self.mean else ():  # only now: the repair finds tensors by their names
            bypass(graph, graph.main, each.sum, each.kept)
        return outcome

    def _chosen(self, graph: Graph, blocks: Sequence[ResidualBlock], harms: dict[str, float]) -> set[str]:
        """Which blocks go, by key: the least harmful, for the MACs they take where these are the goal."""
        known = [each for each in blocks if np.isfinite(harms.get(each.key, np.inf))]
        if self.harm is not None:
            return {each.key for each in known if harms[each.key] <= self.harm}
        if self.macs is None:
            count = max(1, round(self.ratio * len(blocks))) if self.ratio else 0
            return {each.key for each in sorted(known, key=lambda each: harms[each.key])[:count]}
        total = sum(each.count for each in count_macs(graph).values() if each is not None)
        gone: set[str] = set()
        left = total
        for each in sorted(known, key=lambda each: harms[each.key] / max(each.macs, 1)):
            if left > self.macs * total:
                gone.add(each.key)
                left -= each.macs
        return gone


def _selected(graph: Graph, context: Context) -> tuple[list[ResidualBlock], list[Skip]]:
    blocks, declined = residual_blocks(graph)
    skipped = [Skip(key, reason) for key, reason in declined.items() if context.selects(key)]
    kept = []
    for each in blocks:
        if not context.selects(each.key):
            continue
        if context.excludes(*each.constants):
            skipped.append(Skip(each.key, "something that goes with it is excluded"))
        else:
            kept.append(each)
    return kept, skipped


def _means(graph: Graph, blocks: Sequence[ResidualBlock], context: Context) -> dict[str, Array]:
    """The mean (channels,) of what each block adds, by key; without those that the data do not show."""
    axes = {graph.main.key(each.result.name): each.axis for each in blocks}
    found = context.observe.means(graph.model, axes)
    keys = {each.key: graph.main.key(each.result.name) for each in blocks}
    return {key: found[name] for key, name in keys.items() if name in found}


def _harms(
    graph: Graph, blocks: Sequence[ResidualBlock], means: dict[str, Array], context: Context
) -> dict[str, float]:
    """What it costs that each block goes by itself: the model's divergence, or, where nobody measures it, the share of
    the sum's variance that goes with it."""
    if context.divergence is None:
        return _shares_of_variance(graph, blocks, context)
    found = {}
    for done, each in enumerate(blocks):
        context.progress(done, len(blocks), f"without {each.key}")
        other = open_plain(graph.model)
        own = next(block for block in residual_blocks(other)[0] if block.key == each.key)
        own.drop(other, means[each.key])
        found[each.key] = context.divergence(close_graph(other))
    return found


def _shares_of_variance(graph: Graph, blocks: Sequence[ResidualBlock], context: Context) -> dict[str, float]:
    powers: dict[str, float] = {}

    def see(name: str, value: Value) -> None:
        powers[name] = powers.get(name, 0.0) + float(np.square(value - np.mean(value), dtype=np.float64).sum())

    keys = {each.key: (graph.main.key(each.result.name), graph.main.key(each.sum.outputs[0].name)) for each in blocks}
    context.observe.watch(graph.model, sorted({name for own in keys.values() for name in own}), see)
    return {key: powers[own] / max(powers[whole], LEAST_POWER) for key, (own, whole) in keys.items() if own in powers}
