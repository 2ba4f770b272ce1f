"""Nodes taken out of a graph and put in stand where they should when they are asked for."""

from __future__ import annotations

from onnxcomp.graph.ir.nodes import Body, Node


def body_of(names: str) -> tuple[Body, dict[str, Node]]:
    body, nodes = Body(name="g", opset=17), {name: Node("Neg", name) for name in names}
    for node in nodes.values():
        body.put(node)
    return body, nodes


def names_in(body: Body) -> str:
    return "".join(node.name for node in body.nodes)


def test_new_nodes_stand_right_before_theirs_in_the_order_they_came() -> None:
    body, nodes = body_of("abc")
    first = Node("Neg", "1")
    body.put(first, nodes["b"])
    body.put(Node("Neg", "2"), nodes["b"])
    body.put(Node("Neg", "0"), first)
    body.put(Node("Neg", "9"))
    assert names_in(body) == "a012bc9"


def test_before_a_node_of_another_graph_means_at_the_end() -> None:
    body, nodes = body_of("ab")
    body.take_out(nodes["a"])
    body.put(Node("Neg", "1"), nodes["a"])
    body.put(Node("Neg", "2"), Node("Neg", "x"))
    assert names_in(body) == "b12"


def test_nodes_taken_out_are_gone_with_what_awaits_them_kept() -> None:
    body, nodes = body_of("abc")
    added, dropped = Node("Neg", "1"), Node("Neg", "2")
    body.put(added, nodes["b"])
    body.put(dropped, nodes["b"])
    body.take_out(nodes["b"])
    body.take_out(dropped)
    assert body.holds(added) and not body.holds(nodes["b"]) and not body.holds(dropped)
    assert names_in(body) == "a1c"
    body.nodes = [nodes["b"]]
    assert body.holds(nodes["b"]) and not body.holds(added)
