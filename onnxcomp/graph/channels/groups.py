"""Which channels of which weights belong together: what has to be scaled, or removed, as one.

    y = W2 relu(W1 x + b)      channel i of y1 = W1 x + b is  row i of W1, element i of b, column i of W2

Dividing the first two by s_i > 0 and multiplying the last by s_i changes no output. ``channel_trace``
follows every tensor through a model and fills a ``Channels``: products, the constants beside them,
and numbered channels, of which some are fixed because a graph output or a node that mixes them reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.graph.channels.ids import ChannelSets, Numbers
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.weights.linear_op import LinearOp
from onnxcomp.graph.weights.matrix_form import MatrixForm
from onnxcomp.graph.weights.roles import Weight


@dataclass(frozen=True, eq=False)
class ChannelProduct:
    """The channels of a linear operator, or of the W of a recurrent node.

    rows: (groups * outputs,) channels that it makes, columns: (groups * inputs,) channels that it reads, both in the
    order of the weight's matrix form. fault: why the weight cannot be scaled, or "".
    """

    op: LinearOp
    weight: Weight
    form: MatrixForm
    rows: Numbers
    columns: Numbers
    fault: str = ""

    @property
    def key(self) -> str:
        """The name by which the model knows the node."""
        return self.op.key

    @property
    def scope(self) -> Scope:
        return self.op.scope

    @property
    def node(self) -> Node:
        return self.op.node

    @property
    def data(self) -> Any:
        """The tensor that it reads."""
        return self.op.data

    def peaks(self) -> Array:
        """The largest magnitude of each output's kernel for each input: (groups, outputs, inputs)."""
        packed = np.abs(self.form.pack(self.weight.values))
        inputs = self.columns.size // self.form.groups
        peaks: Array = packed.reshape(*packed.shape[:2], inputs, -1).max(axis=-1).astype(np.float64)
        return peaks


@dataclass(frozen=True, eq=False)
class Factor:
    """A constant beside a product whose elements go with channels: a bias, a gain, a constant that is added.

    numbers: broadcast against it. power: of s by which it is multiplied; a bias has -1.
    """

    scope: Scope
    node: Node
    index: int
    numbers: Numbers
    power: int

    @property
    def constant(self) -> Constant:
        """The constant as it is now."""
        found: Constant = self.node.inputs[self.index]
        return found


@dataclass(frozen=True, eq=False)
class Bound:
    """A Clip with a bound other than zero, which has to become one bound a channel."""

    scope: Scope
    node: Node
    low: float | None
    high: float | None
    dtype: np.dtype[Any]
    numbers: Numbers


@dataclass(frozen=True, eq=False)
class ChannelSource:
    """A node that makes channels: a product, a normalization with a gain, a BatchNormalization."""

    key: str
    node: Node
    numbers: Numbers


@dataclass(eq=False)
class ChannelGroup:
    """Channels of sources that share some, with all that has to be scaled along.

    name: the key of the first source. channels: one number of each set, none of them fixed.
    """

    name: str
    channels: Numbers
    sources: list[ChannelSource]
    producers: list[ChannelProduct] = field(default_factory=list)
    consumers: list[ChannelProduct] = field(default_factory=list)
    factors: list[Factor] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)

    @property
    def touched(self) -> set[str]:
        """The names of all nodes and constants that scaling would change."""
        products = [*self.producers, *self.consumers]
        names = {source.key for source in self.sources}
        names.update(name for each in products for name in (each.key, each.weight.name))
        for factor in self.factors:
            names.add(node_key(factor.scope, factor.node))
            names.add(factor.scope.key(factor.constant.name))
        names.update(node_key(bound.scope, bound.node) for bound in self.bounds)
        return names


class Channels:
    """The channels of a model."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sets = ChannelSets()
        self.products: list[ChannelProduct] = []
        self.factors: list[Factor] = []
        self.bounds: list[Bound] = []
        self.sources: list[ChannelSource] = []
        self.tensors: dict[Any, tuple[Scope, Numbers, int | None]] = {}  # the channels of each, and its rank

    def groups(self) -> list[ChannelGroup]:
        """The sources whose channels can be scaled, those that share channels together."""
        owners = self._owners()
        found: dict[int, ChannelGroup] = {}
        for source in self.sources:
            for owner in self._owned(owners, source.numbers):
                members = np.flatnonzero(owners == owner)
                found.setdefault(owner, ChannelGroup(source.key, members, [])).sources.append(source)
        self._collect(owners, found)
        return list(found.values())

    def reason(self, source: ChannelSource) -> str:
        """Why a source's channels cannot be scaled."""
        return self.sets.reason(source.numbers)

    def _owners(self) -> Numbers:
        """For each channel number that stands for a free set, the group that it is in; -1 for all others."""
        owners = np.full(self.sets.count, -1, np.int64)
        for index, source in enumerate(self.sources):
            free = np.unique(self.sets.roots(source.numbers[~self.sets.is_fixed(source.numbers)]))
            for owner in np.unique(owners[free]).tolist():
                if owner >= 0:
                    owners[owners == owner] = index
            owners[free] = index
        return owners

    def _owned(self, owners: Numbers, numbers: Numbers) -> list[int]:
        return [each for each in np.unique(owners[self.sets.roots(numbers)]).tolist() if each >= 0]

    def _collect(self, owners: Numbers, groups: dict[int, ChannelGroup]) -> None:
        for product in self.products:
            for owner in self._owned(owners, product.rows):
                groups[owner].producers.append(product)
            for owner in self._owned(owners, product.columns):
                groups[owner].consumers.append(product)
        for factor in self.factors:
            for owner in self._owned(owners, factor.numbers):
                groups[owner].factors.append(factor)
        for bound in self.bounds:
            for owner in self._owned(owners, bound.numbers):
                groups[owner].bounds.append(bound)
