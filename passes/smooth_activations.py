"""What is hard to quantize moves from activations to the weights that read them, channel by channel.

    LayerNormalization(x; g, b) W    becomes    LayerNormalization(x; g / s, b / s) (diag(s) W)

A few channels of a transformer's activations reach a hundred times as far as the others, and a grid for the whole
activation then has few levels for those. No output changes and no byte is saved: static quantization loses less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.calibration.statistics.input_rows import InputRows
from onnxcomp.contract import Context, Effect, Exact, Needs, Outcome, Pass, parameter
from onnxcomp.graph.channels.groups import ChannelGroup, ChannelProduct, Channels
from onnxcomp.graph.channels.ids import Numbers
from onnxcomp.graph.channels.scale_insertion import InsertionSite, insert_scale, insertion_sites
from onnxcomp.graph.channels.scaling import LARGEST, largest_factor, may_scale, scale_channels
from onnxcomp.graph.channels.trace import trace_channels
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.numerics.channels.smoothquant import STRENGTHS, Reader, Smoothing, best_smoothing

# What smoothing must leave of the error: it is free where it folds, and costs a pass over the activation elsewhere.
FOLDED_SHARE, INSERTED_SHARE = 0.9, 0.7


@dataclass(frozen=True, kw_only=True)
class SmoothActivations(Pass):
    """Move outlier channels of activations into the weights that read them, as far as calibration shows it pays.

    The factors go into what makes the channels: the gain of a normalization, or the rows of the weight before; all
    that reads them must be weights, as in ``equalize-ranges``. Where they cannot go anywhere, ``insert`` puts a Mul
    in front of the weights. All that reads one activation gets the same factors. Prepares for ``quantize-static``
    and gains nothing alone.

    Deviations from the paper: the strength is not one for the whole model, but searched for each activation, by the
    output error of its readers with both sides in 8 bits; convolutions and recurrent nodes are smoothed, too.
    """

    needs = Needs.CALIBRATION
    effect = Effect(shrinks=("bytes",), exact=Exact.OUTPUTS, rounding=True)
    paper = "https://arxiv.org/abs/2211.10438"
    prepared_by = ("inline-functions", "fold-constants", "fuse-batch-norm", "fuse-pad")

    migration: float | None = parameter(
        None, low=0.0, high=1.0, help="share of the difficulty that moves to the weights; searched where left out"
    )
    insert: bool = parameter(False, help="put a Mul in front of weights where the factors fold into nothing")
    samples: int = parameter(256, low=1, help="calibration samples used, at most")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        channels = trace_channels(graph)
        groups = [each for each in channels.groups() if may_scale(each, context.selects, context.excludes)]
        sites = insertion_sites(channels, context.excludes) if self.insert else []
        sites = [each for each in sites if context.selects(each.name)]
        products = [product for group in groups for product in group.consumers]
        products += [product for site in sites for product in site.products]
        seen = self._rows(graph, products, context)
        self._fold(channels, [each for each in groups if each.consumers], seen, context, outcome)
        for done, site in enumerate(sites):
            context.progress(done, len(sites), site.name)
            self._insert(graph, site, seen, outcome)
        return _without_repeats(outcome)

    def _rows(self, graph: Graph, products: Sequence[ChannelProduct], context: Context) -> Mapping[str, InputRows]:
        weights = {each.weight.name: each.weight for each in products}
        return context.observe.rows(graph, list(weights.values()), limit=self.samples)

    def _fold(
        self,
        channels: Channels,
        groups: Sequence[ChannelGroup],
        seen: Mapping[str, InputRows],
        context: Context,
        outcome: Outcome,
    ) -> None:
        """Scale the channels of groups that gain by it; all are measured on the model as it came."""
        factors = np.ones(channels.sets.count)
        for done, group in enumerate(groups):
            context.progress(done, len(groups), group.name)
            columns = {each: channels.sets.roots(each.columns) for each in group.consumers}
            readers = [_reader(each, columns[each], seen) for each in group.consumers if each.weight.name in seen]
            if not readers:
                outcome.skip(group.name, "no weight that reads its channels has inputs that can be watched")
                continue
            largest = largest_factor([group])
            found = best_smoothing(
                readers, group.channels, channels.sets.count, strengths=self._strengths(), largest=largest
            )
            if self._gains(found, FOLDED_SHARE, group.name, outcome):
                factors[group.channels] = found.factors[group.channels]
                _note(outcome, group.name, found, group.consumers, "")
        if np.any(factors != 1):
            outcome.origins.update(scale_channels(channels, factors))

    def _insert(self, graph: Graph, site: InsertionSite, seen: Mapping[str, InputRows], outcome: Outcome) -> None:
        count = site.channel_count
        readers = [_reader(each, site.numbers(each), seen) for each in site.products if each.weight.name in seen]
        if len(readers) < len(site.products):
            outcome.skip(site.name, "its input cannot be watched, or is not float32")
            return
        found = best_smoothing(readers, np.arange(count), count, strengths=self._strengths(), largest=LARGEST)
        if self._gains(found, INSERTED_SHARE, site.name, outcome):
            outcome.origins.update(insert_scale(graph, site, found.factors))
            _note(outcome, site.name, found, site.products, " by a Mul")

    def _strengths(self) -> tuple[float, ...]:
        return STRENGTHS if self.migration is None else (self.migration,)

    def _gains(self, found: Smoothing, share: float, name: str, outcome: Outcome) -> bool:
        """Whether smoothing pays; a strength that was asked for is not weighed."""
        pays = self.migration is not None or found.after <= share * found.before
        if pays and np.any(found.factors != 1):
            return True
        error = f"{found.before:.2g} to {found.after:.2g}"
        outcome.skip(name, f"it gains too little: the error of its readers would go from {error}")
        return False


def _reader(product: ChannelProduct, numbers: Numbers, seen: Mapping[str, InputRows]) -> Reader:
    """A product as arrays; each number stands for all the elements of a kernel that go with an input."""
    inputs = seen[product.weight.name]
    matrices = product.form.pack(product.weight.values).astype(np.float32)
    groups, _, length = matrices.shape
    spread = numbers.reshape(groups, -1)
    return Reader(matrices, inputs.rows, inputs.low, inputs.high, spread.repeat(length // spread.shape[1], axis=1))


def _note(outcome: Outcome, name: str, found: Smoothing, readers: Sequence[ChannelProduct], how: str) -> None:
    outcome.change(
        name,
        f"smoothed{how} at strength {found.strength:g}",
        strength=found.strength,
        error_before=found.before,
        error=found.after,
        readers=[each.key for each in readers],
    )


def _without_repeats(outcome: Outcome) -> Outcome:
    """Without reasons for what was changed all the same: a node may both make channels and read others."""
    changed = {each.name for each in outcome.changed}
    return replace(outcome, skipped=[each for each in outcome.skipped if each.name not in changed])
