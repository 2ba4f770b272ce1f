"""The part of a model that some changed tensors act on, to be run from what is known of all others.

    x -> A -> B(w) -> C -> y     with w changed and A's output known:     a -> B(w) -> C -> y
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, ValueInfoProto

from onnxcomp.graph.extract import read_by
from onnxcomp.graph.ir.writer import copy_fields


@dataclass(frozen=True)
class Slice:
    """Some nodes of a main graph, in order. feeds: what they read that is known. outputs: those of the model that they
    compute; initializers, inputs: those of the model that they read."""

    nodes: tuple[NodeProto, ...]
    feeds: tuple[str, ...]
    inputs: tuple[str, ...]
    initializers: tuple[str, ...]
    outputs: tuple[str, ...]


class Slices:
    """A model whose main graph is cut between its nodes. The nodes are in order, as in any valid model."""

    def __init__(self, proto: ModelProto) -> None:
        self.proto = proto
        self._nodes = list(proto.graph.node)
        self._reads = [frozenset(read_by(node)) for node in self._nodes]
        self._makes = [frozenset(filter(None, node.output)) for node in self._nodes]
        self.computed = frozenset(name for made in self._makes for name in made)
        self.outputs = tuple(each.name for each in proto.graph.output)
        self.inputs = tuple(each.name for each in proto.graph.input)
        self._initializers = [each.name for each in proto.graph.initializer]
        self._initializers += [each.values.name for each in proto.graph.sparse_initializer]
        fed = set(self.inputs) - (set(self._initializers) if proto.ir_version < 4 else set())
        self.varying = frozenset(self.after(fed))

    @property
    def node_count(self) -> int:
        """How many nodes the main graph has."""
        return len(self._nodes)

    def after(self, names: Collection[str]) -> set[str]:
        """The tensors that are computed from some of these, in one way or another."""
        found: set[str] = set()
        changed = set(names)
        for reads, makes in zip(self._reads, self._makes, strict=True):
            if not changed.isdisjoint(reads):
                found |= makes
                changed |= makes
        return found

    def first_reader(self, name: str) -> int:
        """The position of the first node that reads a tensor; of none, after all nodes."""
        return next((at for at, reads in enumerate(self._reads) if name in reads), self.node_count)

    def beside(self, changed: Set[str]) -> set[str]:
        """What has to be known to compute ``changed``, all that comes after some tensors, and the model's other
        outputs: tensors that vary with the model's inputs. The inputs themselves are known."""
        found = set(self.outputs) - changed
        for reads, makes in zip(self._reads, self._makes, strict=True):
            if not changed.isdisjoint(makes):
                found |= reads - changed
        return found & self.varying

    def cut(self, changed: Set[str], known: Set[str]) -> Slice:
        """What computes the outputs that are in ``changed``, and the others as far as they are not ``known``."""
        stops = set(known) - changed
        while True:
            found = self._cut(stops)
            twice = {name for node in found.nodes for name in node.output if name in stops}
            if not twice:
                return found
            stops -= twice  # made by a node that is needed for another output of it

    def _cut(self, stops: Set[str]) -> Slice:
        needed = set(self.outputs) - stops
        taken: list[NodeProto] = []
        fed: set[str] = set()
        for node, reads, makes in reversed(list(zip(self._nodes, self._reads, self._makes, strict=True))):
            if not needed.isdisjoint(makes):
                taken.append(node)
                needed |= reads - stops
                fed |= reads & stops
        return Slice(
            nodes=tuple(reversed(taken)),
            feeds=tuple(sorted(fed)),
            inputs=tuple(name for name in self.inputs if name in needed),
            initializers=tuple(name for name in self._initializers if name in needed),
            outputs=tuple(name for name in self.outputs if name not in stops),
        )

    def model(self, part: Slice, feeds: Mapping[str, ValueInfoProto]) -> ModelProto:
        """A slice as a model of its own. feeds: what its feeds are."""
        source, proto = self.proto.graph, ModelProto()
        copy_fields(self.proto, proto, ("graph", "training_info", "metadata_props"))
        graph = proto.graph
        graph.name = source.name
        graph.node.extend(part.nodes)
        kept = set(part.initializers)
        graph.initializer.extend(each for each in source.initializer if each.name in kept)
        graph.sparse_initializer.extend(each for each in source.sparse_initializer if each.values.name in kept)
        graph.input.extend(each for each in source.input if each.name in part.inputs)
        graph.input.extend(feeds[name] for name in part.feeds)
        graph.output.extend(each for each in source.output if each.name in part.outputs)
        made = {name for node in part.nodes for name in node.output}
        graph.value_info.extend(each for each in source.value_info if each.name in made)
        return proto
