"""Scale channels in front of weights by a Mul of their own, where nothing before them can take the factors.

x -> W, V        becomes        x -> Mul(1 / s) -> W diag(s), V diag(s)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.graph.channels.flow import BROADCASTING_OPSET
from onnxcomp.graph.channels.groups import ChannelProduct, Channels
from onnxcomp.graph.channels.ids import Numbers
from onnxcomp.graph.channels.scaling import scaled_weight, weight_origins
from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.provenance import Origin
from onnxcomp.graph.ir.reader import Graph

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class InsertionSite:
    """Weights that read the last axis of one tensor, none of whose channels can be scaled by what makes them.

    channel_count: of the tensor's last axis.
    """

    tensor: Any
    channel_count: int
    products: list[ChannelProduct]

    @property
    def name(self) -> str:
        """The key of the first node, by which the site can be left out."""
        return self.products[0].key

    def numbers(self, product: ChannelProduct) -> Numbers:
        """Which channel, from 0, each column of a product's weight reads."""
        return np.resize(np.arange(self.channel_count), product.columns.size)


def insertion_sites(channels: Channels, excludes: Callable[..., bool]) -> list[InsertionSite]:
    """Where factors can be put, leaving out products whose node or weight is excluded."""
    found: dict[Any, InsertionSite] = {}
    for product in channels.products:
        usable = bool(channels.sets.is_fixed(product.columns).all()) and not product.fault
        if not usable or not _reads_last_axis(product) or isinstance(product.data, Constant):
            continue
        if product.scope.opset < BROADCASTING_OPSET or excludes(product.key, product.weight.name):
            continue
        count = product.columns.size // product.form.groups
        found.setdefault(product.data, InsertionSite(product.data, count, [])).products.append(product)
    return list(found.values())


def _reads_last_axis(product: ChannelProduct) -> bool:
    """Whether it is a matrix product or a recurrent node whose channels are on the last axis of what it reads.

    Convolutions are left: what they read is mostly made by another one, whose integer kernel rounds it before any
    Mul could come (EfficientNet-Lite0's divergence went from 0.014 to 0.035).
    """
    return product.form.kind in ("right", "rows", "recurrent") and not product.op.swaps_data


def insert_scale(graph: Graph, site: InsertionSite, factors: Floats) -> dict[str, Origin]:
    """Divide the tensor by the factors (channels,) where the site's products read it, and multiply their weights; what
    these were before, by key."""
    origins: dict[str, Origin] = {}
    scope, first = site.products[0].scope, site.products[0].node
    constant = graph.constant(scope, f"{site.tensor.name}_factor", (1 / factors).astype(np.float32))
    scaled = graph.variable(f"{site.tensor.name}_scaled")
    graph.node(scope, "Mul", [site.tensor, constant], [scaled], before=first)
    for product in site.products:
        rows, columns = np.ones(product.rows.size), factors[site.numbers(product)]
        index = next(i for i, each in enumerate(product.node.inputs) if each is site.tensor)
        product.node.inputs[index] = scaled
        product.weight.set(scaled_weight(product, rows, columns))
        origins |= weight_origins(product, rows, columns)
    return origins
