"""High biases before a Relu move on into the biases of the nodes that read it.

    W2 relu(y) + b2    becomes    W2 relu(y - c) + (b2 + W2 c),    c = max(0, mean(y) - 3 std(y))

relu(y - c) = relu(y) - c for all y of at least c, so this changes little, and the activation's range, on which a grid
must spend its levels, shrinks by c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Needs, Outcome, Pass, parameter
from onnxcomp.graph.channels.groups import ChannelProduct, Channels
from onnxcomp.graph.channels.trace import trace_channels
from onnxcomp.graph.ir.query import node_key, sole_reader
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.bias import Bias
from onnxcomp.numerics.channels.cross_layer_equalization import Floats, high_biases
from onnxcomp.runtime import Value

MAKERS = frozenset({"conv", "conv_transpose", "right", "rows"})  # forms whose channels are on axis 1 or the last one
LEAST_SHARE = 1e-3  # of the spread of the channels: less is not worth a change


@dataclass(frozen=True, kw_only=True)
class AbsorbBiases(Pass):
    """Move the part of biases that a Relu never cuts into the nodes that read it.

    All that reads the activation must be a matrix product or a convolution without padding (where a kernel overlaps
    the border, the padding would have to be c). Goes after ``equalize-ranges``, which can make biases high.

    Deviation from the paper: mean and deviation come from calibration data, not from batch normalization.
    """

    needs = Needs.CALIBRATION
    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1906.04721"
    prepared_by = ("inline-functions", "fold-constants", "fuse-batch-norm", "fuse-pad")

    min_deviations: float = parameter(
        3.0, low=0.0, high=10.0, help="standard deviations that must stay between the Relu's cut and the mean"
    )
    samples: int = parameter(512, low=1, help="calibration samples used, at most")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        channels = trace_channels(graph)
        sites = []
        for product in channels.products:
            found = _site(channels, product, context)
            if isinstance(found, str):
                if context.selects(product.key):
                    outcome.skip(product.key, found)
            elif found is not None:
                sites.append(found)
        self._measure(graph, sites, context)
        for site in sites:
            self._absorb(channels, site, outcome)
        return outcome

    def _measure(self, graph: Graph, sites: Sequence[_Site], context: Context) -> None:
        """See what goes into each Relu."""
        by_name = {site.bias.output.name: site for site in sites}

        def see(name: str, value: Value) -> None:
            by_name[name].see(value)

        if by_name:
            context.observe.watch(graph.model, list(by_name), see, limit=self.samples)

    def _absorb(self, channels: Channels, site: _Site, outcome: Outcome) -> None:
        key, product = site.product.key, site.product
        if site.count == 0:
            outcome.skip(key, "what goes into the Relu is not float32 or not finite, or never came")
            return
        mean, deviation = site.mean, site.deviation
        moved = high_biases(mean, deviation, self.min_deviations)
        if moved.max(initial=0.0) <= LEAST_SHARE * deviation.max(initial=0.0):
            outcome.skip(key, "no channel's bias is high")
            return
        by_number = np.zeros(channels.sets.count)
        by_number[channels.sets.roots(product.rows)] = moved
        for reader, bias in zip(site.readers, site.reader_biases, strict=True):
            shift = _through(reader, by_number[channels.sets.roots(reader.columns)])
            bias.set(channels.graph, bias.values(shift.size) + shift)
        site.bias.set(channels.graph, site.bias.values(moved.size) - moved)
        count = int(np.count_nonzero(moved))
        outcome.change(key, f"{count} of {moved.size} biases lowered by up to {moved.max():.3g}", channels=count)


@dataclass(eq=False)
class _Site:
    """A product with its bias and a Relu, and the products that read that; sums of what goes into the Relu."""

    product: ChannelProduct
    bias: Bias
    readers: list[ChannelProduct]
    reader_biases: list[Bias]
    count: int = 0
    total: Floats = field(default_factory=lambda: np.zeros(0))
    squares: Floats = field(default_factory=lambda: np.zeros(0))
    is_odd: bool = False

    @property
    def touched(self) -> list[str]:
        """The names of the nodes and weights that moving biases changes."""
        products = [self.product, *self.readers]
        biases = [self.bias, *self.reader_biases]
        return [
            *(name for each in products for name in (each.key, each.weight.name)),
            *(name for each in biases for name in (node_key(each.scope, each.holder or each.node), each.name) if name),
        ]

    def see(self, value: Value) -> None:
        """Take in one batch."""
        ok = isinstance(value, np.ndarray) and value.dtype == np.float32 and bool(np.isfinite(value).all())
        if self.is_odd or not ok or not isinstance(value, np.ndarray):
            self.is_odd, self.count = True, 0
            return
        axis = self.product.op.output_axis
        rows = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
        first = not self.count
        total, squares = rows.sum(axis=0, dtype=np.float64), np.square(rows, dtype=np.float64).sum(axis=0)
        self.total, self.squares = (total, squares) if first else (self.total + total, self.squares + squares)
        self.count += len(rows)

    @property
    def mean(self) -> Floats:
        return self.total / self.count

    @property
    def deviation(self) -> Floats:
        return np.sqrt(np.maximum(0.0, self.squares / self.count - self.mean**2))


def _site(channels: Channels, product: ChannelProduct, context: Context) -> _Site | str | None:
    """What a product's high biases could move to; why they cannot, or None where no Relu follows or it is excluded."""
    graph = channels.graph
    if product.form.kind not in MAKERS or product.scope is not graph.main or product.rows.size != _outputs(product):
        return None
    bias = product.op.bias(graph)
    if bias.fault(product.rows.size):
        return None
    relu = sole_reader(graph, product.scope, bias.output, "Relu")
    if relu is None:
        return None
    readers = _readers(channels, relu.outputs[0])
    if isinstance(readers, str):
        return readers
    biases = [each.op.bias(graph) for each in readers]
    faults = (bias.fault(_outputs(each)) for each, bias in zip(readers, biases, strict=True))
    fault = next((each for each in faults if each), None)
    if fault:
        return f"a node that reads the Relu cannot take it: {fault}"
    site = _Site(product, bias, readers, biases)
    return site if context.selects(product.key) and not context.excludes(*site.touched) else None


def _outputs(product: ChannelProduct) -> int:
    """How many channels the product makes; those of a batch of matrices count once."""
    together = 1 if product.form.kind.startswith("conv") else product.form.groups
    return product.rows.size // together


def _readers(channels: Channels, tensor: object) -> list[ChannelProduct] | str:
    """The products that read a tensor, or why something stands in the way."""
    found = [each for each in channels.products if each.data is tensor]
    if channels.graph.is_output(tensor) or len(found) != len(getattr(tensor, "outputs", [])) or not found:
        return "something else than matrix products and convolutions reads its Relu"
    for each in found:
        if each.form.kind not in ("conv", "right", "rows") or each.fault or each.rows.size != _outputs(each):
            return f"{each.key} reads its Relu and cannot take a bias"
        padded = any(each.node.attrs.get("pads") or ()) or each.node.attrs.get("auto_pad", "NOTSET").startswith("SAME")
        if padded:
            return f"{each.key} pads what it reads"
    return found


def _through(product: ChannelProduct, columns: Floats) -> Floats:
    """What a product makes of one number a channel (groups * inputs,): (groups * outputs,) float64."""
    packed = product.form.pack(product.weight.values)
    groups, _, length = packed.shape
    spread = columns.reshape(groups, -1, 1).repeat(length * groups // max(1, columns.size), axis=1)
    made: Floats = np.matmul(packed.astype(np.float64), spread.reshape(groups, length, 1)).reshape(-1)
    return made
