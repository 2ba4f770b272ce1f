"""Open a model with the weights that nodes decode from fewer bytes as what they are: constants.

    w: float16 -> Cast -> MatMul          is seen as          w: float32 -> MatMul

While the graph is open, decoders are out of sight. When it is written they are there again, where a weight's values
are as they were or others can be stored in the same way; a weight that became something else is written plain. So no
pass has to know how a weight is stored, and one that leaves it alone does not make the file larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import has_references, is_onnx, producer
from onnxcomp.graph.ir.reader import Graph, Scope, open_graph
from onnxcomp.graph.stored.decoding import Decoders
from onnxcomp.graph.stored.forms import FORM, cast_type, decoded_form, reformed
from onnxcomp.graph.stored.views import FLOATS, CastView, DecodedValues, View, Views
from onnxcomp.model import Model

OWN_BYTES = 64  # smaller constants of a decoder may be read elsewhere, too: shapes, axes, tables that many share


def open_plain(model: Model) -> Graph:
    """Open a model for editing, with every stored weight in sight as the constant that its decoder makes.

    A weight that something else reads as it is stored stays as it is: it would become two.
    """
    graph = open_graph(model)
    show_stored(graph)
    return graph


def show_stored(graph: Graph) -> None:
    """Let a graph that was just opened show stored weights as ``open_plain`` does."""
    outputs = frozenset(id(out) for scope in graph.scopes for out in scope.graph.outputs)
    inside: set[int] = set()
    views: list[View] = list(_decoded_views(graph, outputs, inside))
    views += _cast_views(graph, outputs, inside)
    if views:
        graph.stored = Views(graph, views)
        graph.stored.take_out(graph)


def is_stored(constant: Constant) -> bool:
    """Whether a decoder makes the constant."""
    return isinstance(constant._values, DecodedValues)


def stored_bytes(constant: Constant) -> int:
    """Bytes of a constant's data in the file, whatever decodes it."""
    held = constant._values
    return held.stored_bytes if isinstance(held, DecodedValues) else constant.nbytes


def unpacked(before: Model, after: Model) -> list[str]:
    """The stored weights, by their keys, that a rewrite left in more bytes."""
    old, new = _constants(before), _constants(after)
    behind = {key: each for key, each in old.items() if is_stored(each)}
    return sorted(key for key, each in behind.items() if key in new and stored_bytes(new[key]) > stored_bytes(each))


def weights_by_decoded_name(graph: Graph) -> dict[str, str]:
    """The key of what each decoder makes -> the key of the weight that it stands for, in a graph of ``open_plain``."""
    views = graph.stored.views if isinstance(graph.stored, Views) else []
    return {view.scope.key(output.name): view.scope.key(view.name) for view in views for output in view.outputs}


def _constants(model: Model) -> dict[str, Constant]:
    return {scope.key(each.name): each for scope in open_plain(model).scopes for each in scope.constants}


# --- Casts ---------------------------------------------------------------------------------------------


def _cast_views(graph: Graph, outputs: frozenset[int], seen: set[int]) -> Iterator[CastView]:
    """Constants of a shorter float type behind a Cast, and behind changes of form before it. seen: nodes to leave."""
    for scope in graph.scopes:
        for node in scope.graph.nodes:
            kind = cast_type(node) if is_onnx(node) and not has_references(node) else None
            steps = [] if kind is None or str(kind) not in FLOATS else _steps(node)
            if kind is None or not steps or any(id(each) in seen for each in steps):
                continue
            source = steps[0].inputs[0]
            if not isinstance(source, Constant) or not _is_shorter(source, kind):
                continue
            twins = _twins(scope, source, steps)
            shapes = _shapes(source, steps)
            made = [each for several in (twins or [steps]) for each in several]
            if not twins or shapes is None or any(id(each.outputs[0]) in outputs for each in made):
                continue
            seen |= {id(each) for each in made}
            inputs = [each for step in steps for each in step.inputs[1:] if isinstance(each, Constant)]
            ends = [each[-1].outputs[0] for each in twins]
            view = CastView(
                scope=scope, outputs=ends, nodes=made, constants=[source, *inputs],
                source=source, steps=steps, shapes=shapes[:-1],
            )  # fmt: skip
            view.show(graph, shapes[-1], kind)
            yield view


def _steps(cast: Node) -> list[Node]:
    """The Cast and what changes the form before it, in order."""
    steps = [cast]
    while (maker := producer(steps[0].inputs[0])) is not None and is_onnx(maker, "Cast", *FORM):
        if has_references(maker) or len(maker.outputs[0].outputs) != 1:
            break
        steps.insert(0, maker)
    return steps


def _is_shorter(source: Constant, kind: np.dtype[Any]) -> bool:
    return "float" in str(source.dtype) and 0 < source.nbytes < source.size * kind.itemsize


def _shapes(source: Constant, steps: list[Node]) -> list[tuple[int, ...]] | None:
    """What goes into each step, and what comes out of the last; None where that is not known."""
    shapes = [tuple(source.shape)]
    for step in steps:
        after = reformed(step, shapes[-1])
        if after is None:
            return None
        shapes.append(after)
    return shapes


def _twins(scope: Scope, source: Constant, steps: list[Node]) -> list[list[Node]]:
    """All decoders of the constant, where they stand in this scope and are alike; none where others read it."""
    own = {id(each) for each in scope.graph.nodes}
    if source not in scope.constants or any(id(each) not in own for each in steps):
        return []
    if len(source.outputs) == 1:
        return [steps]
    alike = all(is_onnx(each, "Cast") and id(each) in own and each.attrs == steps[0].attrs for each in source.outputs)
    return [[each] for each in source.outputs] if len(steps) == 1 and alike else []


# --- compact storage -----------------------------------------------------------------------------------


def _decoded_views(graph: Graph, outputs: frozenset[int], inside: set[int]) -> Iterator[View]:
    """What ``store-compact`` decodes, where the codes serve nothing else. inside: gets the nodes of all decoders."""
    decoders = Decoders(graph)
    for scope, last in decoders.outputs():
        node = _before_transposes(last)
        nodes, constants = _above(node)
        if all(is_onnx(each, "Cast", *FORM) for each in nodes):
            continue
        inside |= {id(each) for each in nodes}
        if not _is_own(nodes, constants) or any(id(each.outputs[0]) in outputs for each in nodes):
            continue
        shape, dtype = decoded_form(node.outputs[0], decoders.value)
        view = View(scope=scope, outputs=[node.outputs[0]], nodes=nodes, constants=constants, decoders=decoders)
        if str(dtype) in FLOATS and view.stored_bytes < math.prod(shape) * dtype.itemsize:
            view.show(graph, shape, dtype)
            yield view


def _is_own(nodes: list[Node], constants: list[Constant]) -> bool:
    """Whether a decoder's codes are read by nothing else."""
    large = [each for each in constants if each.nbytes > OWN_BYTES]
    return bool(large) and all(reader in nodes for each in large for reader in each.outputs)


def _before_transposes(node: Node) -> Node:
    """The decoder's last node before those that turn what it made for the one that reads it."""
    while node.op == "Transpose" and (maker := producer(node.inputs[0])) is not None:
        if len(maker.outputs[0].outputs) > 1:
            break
        node = maker
    return node


def _above(node: Node) -> tuple[list[Node], list[Constant]]:
    """The nodes and constants that a decoder's last node is computed from, itself included."""
    nodes: dict[Node, None] = {}
    constants: dict[Constant, None] = {}
    waiting = [node]
    while waiting:
        current = waiting.pop()
        nodes[current] = None
        for tensor in current.inputs:
            if isinstance(tensor, Constant):
                constants[tensor] = None
            else:
                waiting.extend(each for each in tensor.inputs if each not in nodes)
    return list(nodes), list(constants)
