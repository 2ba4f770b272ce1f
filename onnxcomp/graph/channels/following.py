"""Following channels from tensor to tensor: what every question about channels shares.

Two questions are asked: which channels can be scaled (``flow``), and which can be cut (``dependencies``). What moves,
joins and parts channels does so in the same way for both (``shape_rules``); where a node states how many channels there
are, or which, the second has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnxcomp.graph.channels.ids import NONE, ChannelSets, Numbers, padded, trimmed
from onnxcomp.graph.infer.shapes import Shapes
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import has_references, node_key
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.graph.weights.roles import Role, Weight, weights


class Following:
    """The channels of the tensors seen so far, in one scope at a time.

    A rule returns False for a node that it cannot follow, before it has changed anything.
    """

    verb = "scaled"  # what is to be done to channels, for the reasons why not
    needs_zeros = True  # whether what padding adds has to be zero

    def __init__(self, graph: Graph, shapes: Shapes, sets: ChannelSets) -> None:
        self.graph = graph
        self.shapes = shapes
        self.sets = sets
        self.scope = graph.main
        self.tensors: dict[Any, tuple[Scope, Numbers, int | None]] = {}  # the channels of each, and its rank
        found = [(role, weight) for weight in weights(graph) for role in weight.roles]
        self._weights: dict[tuple[Node, int], tuple[Role, Weight]] = {
            (role.node, role.input_index): (role, weight) for role, weight in found
        }

    def enter(self, scope: Scope) -> None:
        """Go on with the nodes of another scope."""
        self.scope = scope

    def of(self, tensor: Any) -> Numbers:
        """The channels of a tensor; those of an outer scope have to stay when they are read inside."""
        home, numbers, _ = self.tensors.get(tensor, (self.scope, NONE, None))
        if home is not self.scope:
            self.sets.fix(numbers, f"{tensor.name} is read in a subgraph")
        return numbers

    def is_followed(self, numbers: Numbers) -> bool:
        """Whether any of the channels is free yet."""
        return not bool(self.sets.is_fixed(numbers).all())

    def give(self, tensor: Any, numbers: Numbers) -> bool:
        """Say which channels a tensor has."""
        self.tensors[tensor] = self.scope, trimmed(numbers), self.rank(tensor)
        return True

    def fix(self, tensor: Any, reason: str) -> None:
        """State that a tensor has to stay as it is."""
        self.sets.fix(self.tensors[tensor][1] if tensor in self.tensors else NONE, reason)

    def stop(self, node: Node) -> None:
        """All that the node reads has to stay as it is."""
        for tensor in node.inputs:
            self.sets.fix(self.of(tensor), f"{self.key(node)} ({node.op}) reads its channels and cannot be {self.verb}")

    def key(self, node: Node) -> str:
        """The name by which the model knows a node of the scope."""
        return node_key(self.scope, node)

    def rank(self, tensor: Any) -> int | None:
        """The number of a tensor's dimensions, None where it is not known."""
        return self.shapes.rank(tensor)

    def spread(self, tensor: Any) -> Numbers | None:
        """The channels with as many axes as the tensor, None where its rank is not known."""
        numbers, rank = self.of(tensor), self.rank(tensor)
        return None if rank is None or numbers.ndim > rank else padded(numbers, rank)

    def weight_of(self, node: Node, index: int) -> tuple[Role, Weight] | None:
        """The weight that a node reads at an input, and its role there."""
        return self._weights.get((node, index))

    def through(self, rules: Mapping[tuple[str, str], Callable[[Any, Node], bool]]) -> None:
        """Follow the channels of the whole graph by the rule of each operator, by domain and name."""
        for scope in self.graph.scopes:  # outer ones first
            self.enter(scope)
            for node in ordered(scope.graph.nodes):
                rule = rules.get((node.domain or "", node.op))
                if rule is None or has_references(node) or not rule(self, node):
                    self.stop(node)
            for tensor in scope.graph.outputs:
                self.fix(tensor, "it is an output of its graph")

    # --- what a node says of channels that it moves: nothing to scaling, and False where cutting cannot change it ----

    def states_sizes(self, node: Node, index: int, name: str, numbers: Numbers) -> bool:
        """An input (or before some opset an attribute) holds the size of each axis of what the node makes."""
        return True

    def takes_slice(self, node: Node, position: int, axis: int, numbers: Numbers, step: int) -> bool:
        """A Slice takes a part of the channels along an axis; position: of that axis among those it names."""
        return True

    def takes_parts(self, node: Node, axis: int, parts: list[Numbers]) -> bool:
        """A Split gives the channels along an axis to several outputs."""
        return True

    def takes_picks(self, node: Node, axis: int, numbers: Numbers) -> bool:
        """A Gather picks channels along an axis by their constant positions."""
        return True
