"""Which of some nodes each other node and tensor of a graph comes from, and what a profile's names belong to.

    x -> Conv a -> Relu -> MaxPool -> Conv b -> y        Relu, MaxPool and their tensors belong to a

ONNX Runtime's optimizer names what it makes after what it made it from: "fused a", "a_token_5", or after the
tensor that comes out, "t_nchwc".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.model import Model

MADE_NAME = re.compile(r"^(?:fused )*(.*?)(?:_token_\d+|_nchwc|_nhwc)*$")


class Segments:
    """The main graph of a model, cut at the nodes called ``names`` (see ``node_key``).

    sources: for each of them, those that it reads from directly, through nodes that are none of them.
    readers: the same the other way round; "" among them stands for the model's outputs.
    """

    def __init__(self, graph: Graph, names: Collection[str]) -> None:
        self.sources: dict[str, set[str]] = {}
        self.readers: dict[str, set[str]] = defaultdict(set)
        self._owners: dict[str, str] = {}
        self._reached: dict[str, set[str]] = {}
        main = graph.main
        for node in ordered(main.graph.nodes):
            key = node_key(main, node)
            reached: set[str] = set().union(*(self._reached.get(each.name, ()) for each in node.inputs if each.name))
            owner = next((self._owners[each.name] for each in node.inputs if each.name in self._owners), None)
            if key in names:
                self.sources[key] = reached
                for each in reached:
                    self.readers[each].add(key)
                reached, owner = {key}, key
            for name in (key, *(each.name for each in node.outputs if each.name)):
                self._reached[name] = reached
                if owner is not None:
                    self._owners[name] = owner
        for out in main.graph.outputs:
            for each in self._reached.get(out.name, ()):
                self.readers[each].add("")

    def seconds(self, profile: Mapping[str, float]) -> dict[str, float]:
        """The times of a profile summed up by segment; what belongs to none, at the front of the graph, is left out."""
        found: dict[str, float] = dict.fromkeys(self.sources, 0.0)
        for name, took in profile.items():
            owner = self.owner(name)
            if owner is not None:
                found[owner] += took
        return found

    def owner(self, name: str) -> str | None:
        """Whose segment the node of a profile belongs to, None where that cannot be told."""
        made = MADE_NAME.match(name)
        return next((self._owners[each] for each in (name, made and made.group(1)) if each in self._owners), None)


def with_names(model: Model) -> Model:
    """The model with each nameless node of its main graph called by its key, so that a profile can name it.

    ONNX Runtime refuses two nodes of one name, so a key that another node has for a name is left.
    """
    graph = open_graph(model)
    taken = {node.name for _, node in graph.nodes()}
    for node in graph.main.graph.nodes:
        key = node_key(graph.main, node)
        if not node.name and key not in taken:
            node.name = key
    return close_graph(graph)
