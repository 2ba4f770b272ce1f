"""What ONNX Runtime takes in several forms, in the one form that everything else here reads.

    nodes in any order                       ->  each after those that it reads from, moving as few as needed
    "ai.onnx", the default domain's alias    ->  ""
    a domain that is imported twice          ->  once, in the version that ONNX Runtime goes by
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

ALIAS = "ai.onnx"

Body = GraphProto | FunctionProto
Orders = list[tuple[Body, list[int]]]


class CircleError(ValueError):
    """Nodes that need each other. ``index``: the position of one of them."""

    def __init__(self, index: int) -> None:
        super().__init__(f"the node at {index} depends on its own output")
        self.index = index


def in_order(count: int, needed: Callable[[int], Iterable[int]]) -> list[int]:
    """The numbers below ``count`` so that each comes after those that it needs, moving as few as possible.

    Raises CircleError.
    """
    done: set[int] = set()
    result: list[int] = []
    for start in range(count):
        stack, entered = [start], set()
        while stack:
            current = stack[-1]
            if current in done:
                stack.pop()
                continue
            waiting = [] if current in entered else [each for each in needed(current) if each not in done]
            entered.add(current)
            if any(each in entered and each != current for each in waiting):
                raise CircleError(current)
            if waiting:
                stack.extend(reversed(waiting))
                continue
            stack.pop()
            done.add(current)
            result.append(current)
    return result


def regular_form(proto: ModelProto) -> ModelProto | None:
    """Bring a model to the regular form, in place; gives it as it was, to be handed back where nothing improves it.

    None where it was regular, or where ONNX Runtime does not load it as it was: it takes no subgraph or function out
    of order, and no alias inside a function. Nodes in a circle stay as they are.
    """
    bodies = list(_bodies(proto))
    orders = [(body, order) for body in bodies if (order := _new_order(body)) is not None]
    aliased = [node for body in bodies for node in body.node if node.domain == ALIAS]
    owners: list[ModelProto | FunctionProto] = [proto, *proto.functions]
    importing = [each for each in owners if _is_mixed(each)]
    if not (orders or aliased or importing):
        return None
    loads = all(body is proto.graph for body, _ in orders) and not any(
        node.domain == ALIAS for function in proto.functions for body in _inside(function) for node in body.node
    )
    before = None
    if loads:
        before = ModelProto()
        before.CopyFrom(proto)
    for each in importing:
        _import_once(each)
    for node in aliased:
        node.domain = ""
    for function in proto.functions:
        if function.domain == ALIAS:
            function.domain = ""
    for body, order in reversed(orders):  # inner ones first: a node that moves is a copy
        nodes = list(body.node)
        del body.node[:]
        body.node.extend(nodes[index] for index in order)
    return before


def _bodies(proto: ModelProto) -> Iterator[Body]:
    yield from _inside(proto.graph)
    for function in proto.functions:
        yield from _inside(function)


def _inside(body: Body) -> Iterator[Body]:
    """A graph or function and its subgraphs at any depth, outer ones first."""
    yield body
    for node in body.node:
        for graph in _subgraphs(node):
            yield from _inside(graph)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _new_order(body: Body) -> list[int] | None:
    """How the body's nodes have to be ordered; None where they are, or cannot be."""
    maker = {name: index for index, node in enumerate(body.node) for name in node.output if name}
    needs: list[Sequence[int]] = [
        [maker[name] for name in dict.fromkeys(_reads(node)) if name in maker] for node in body.node
    ]
    if all(each < index for index, several in enumerate(needs) for each in several):
        return None
    try:
        return in_order(len(needs), needs.__getitem__)
    except CircleError:
        return None


def _reads(node: NodeProto) -> Iterator[str]:
    """The names that a node reads from the graph around it, itself or in its subgraphs."""
    yield from node.input
    for graph in _subgraphs(node):
        own = {each.name for each in graph.input} | {each.name for each in graph.initializer}
        own.update(each.values.name for each in graph.sparse_initializer)
        own.update(name for inner in graph.node for name in inner.output)
        for inner in graph.node:
            yield from (name for name in _reads(inner) if name not in own)
        yield from (each.name for each in graph.output if each.name not in own)


def _is_mixed(importing: ModelProto | FunctionProto) -> bool:
    domains = [each.domain for each in importing.opset_import]
    return ALIAS in domains or len(set(domains)) < len(domains)


def _import_once(importing: ModelProto | FunctionProto) -> None:
    """Import each domain once: a model in the version named last, a function by its own name before the alias."""
    entries = list(importing.opset_import)
    if isinstance(importing, FunctionProto):
        entries.sort(key=lambda each: each.domain != ALIAS)
    last = {"" if each.domain == ALIAS else each.domain: each.version for each in entries}
    del importing.opset_import[:]
    for domain, version in last.items():
        importing.opset_import.add(domain=domain, version=version)
