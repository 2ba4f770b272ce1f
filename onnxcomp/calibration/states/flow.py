"""Which inputs a graph's outputs depend on, and which of them go through a recurrent node's own state."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from onnx import GraphProto, NodeProto

# What moves elements of its first input (Concat, Where: of all) and computes nothing.
LAYOUT = frozenset(
    {"Slice", "Gather", "Split", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Identity", "Cast", "Expand",
     "Flatten", "Concat"}
)  # fmt: skip
# Operator -> (input of a state, output of the state after the last step)
LAST_STATES = {"LSTM": ((5, 1), (6, 2)), "GRU": ((5, 1),), "RNN": ((5, 1),)}


@dataclass
class StateFlow:
    """Dependences of every tensor, as bits of an integer: one for each graph input.

    cut: tensors that are taken to depend on nothing.
    """

    cut: frozenset[str] = frozenset()
    reads: dict[str, int] = field(default_factory=dict)  # tensor -> inputs it depends on
    moved: dict[str, int] = field(default_factory=dict)  # tensor -> inputs whose elements it holds, moved only
    ends: dict[str, set[int]] = field(default_factory=dict)  # tensor -> recurrent links whose last state it holds
    links: list[int] = field(default_factory=list)  # the inputs that hold the first state of each recurrent link

    @classmethod
    def of(cls, graph: GraphProto, inputs: Collection[str], *, cut: Iterable[str] = ()) -> StateFlow:
        """The flow of a model's main graph; bit i stands for the i-th of ``inputs``."""
        flow = cls(cut=frozenset(_with_sources(graph, cut)))
        for i, name in enumerate(inputs):
            flow.reads[name] = flow.moved[name] = 1 << i
        flow._walk(graph)
        return flow

    def _walk(self, graph: GraphProto) -> None:
        for node in graph.node:
            bodies = [each.g for each in node.attribute if each.HasField("g")]
            read = self._union(self.reads, node.input)
            for body in bodies:
                for each in body.input:
                    self.reads.setdefault(each.name, read)
                self._walk(body)
            if bodies:
                self._leave(node, bodies, read)
            else:
                self._pass(node, read)

    def _leave(self, node: NodeProto, bodies: list[GraphProto], read: int) -> None:
        """The outputs of If are its bodies' own; those of Loop and Scan depend on all that the bodies read."""
        is_branch = node.op_type == "If"
        every = read | self._union(self.reads, (each.name for body in bodies for each in body.output))
        for i, name in enumerate(node.output):
            own = [body.output[i].name for body in bodies if i < len(body.output)]
            self.reads[name] = 0 if name in self.cut else read | self._union(self.reads, own) if is_branch else every
            if is_branch:
                self.moved[name] = self._union(self.moved, own)
                self.ends[name] = {link for each in own for link in self.ends.get(each, ())}

    def _pass(self, node: NodeProto, read: int) -> None:
        moving = node.input if node.op_type == "Concat" else node.input[:1]
        for name in node.output:
            self.reads[name] = 0 if name in self.cut else read
            if node.op_type in LAYOUT:
                self.moved[name] = self._union(self.moved, moving)
                self.ends[name] = {link for each in moving for link in self.ends.get(each, ())}
        for first, last in LAST_STATES.get(node.op_type, ()):
            if first < len(node.input) and last < len(node.output):
                self.ends[node.output[last]] = {len(self.links)}
                self.links.append(self.moved.get(node.input[first], 0))

    @staticmethod
    def _union(bits: dict[str, int], names: Iterable[str]) -> int:
        found = 0
        for name in names:
            found |= bits.get(name, 0)
        return found


def _with_sources(graph: GraphProto, names: Iterable[str]) -> Iterator[str]:
    """The tensors, and what they are mere copies of."""
    copied = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    for name in names:
        yield name
        while name in copied:
            name = copied[name]
            yield name
