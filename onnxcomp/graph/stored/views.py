"""Constants in the place of decoders, and decoders in the place of constants again.

    codes -> Gather -> Reshape -> W -> MatMul          <->          W -> MatMul

Both forms hold the same; which one is in sight is switched for a whole graph at once.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import helper

from onnxcomp.graph.ir.nodes import Array, Constant, Node, ProtoValues
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.stored.decoding import Decoders
from onnxcomp.graph.stored.forms import cast_type, order_of
from onnxcomp.numerics.encodings.encoding import Encoding, RescaledEncoding, same_bits
from onnxcomp.tensors import SPILL_BYTES, bits_of, spill

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


class DecodedValues(ProtoValues):
    """Values that a decoder makes, computed when they are first asked for; ``stored_bytes``: what they take now."""

    def __init__(self, view: View, graph: Graph, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.tensor = None
        self.model = graph.model
        self.shape = shape
        self.dtype = dtype
        self.data_type = helper.np_dtype_to_tensor_dtype(dtype)
        self.nbytes = math.prod(shape) * dtype.itemsize
        self.stored_bytes = view.stored_bytes
        self._view = view
        self._known: Array | None = None

    def load(self) -> Array:
        """The values; large ones are mapped from the scratch folder."""
        if self._known is None:
            values = np.asarray(self._view.decoded(), order="C")
            self._known = spill(values, self.model.scratch) if self.nbytes >= SPILL_BYTES else values
        return self._known


@dataclass(eq=False, kw_only=True)
class View:
    """A constant in the place of what a decoder makes.

    outputs: tensors that are equal, each made by a decoder of its own; the first stands for all when it is written.
    nodes, constants: all that they need.
    """

    scope: Scope
    outputs: list[Any]
    nodes: list[Node]
    constants: list[Constant]
    decoders: Decoders | None = None
    constant: Constant = field(init=False)
    held: DecodedValues = field(init=False)

    @property
    def name(self) -> str:
        """What the constant is called."""
        return str(self.outputs[0].name)

    @property
    def written(self) -> list[Node]:
        """The nodes that make the first output."""
        return self.nodes

    @property
    def stored_bytes(self) -> int:
        """Bytes of the data that the decoder starts from."""
        return sum((each.size * bits_of(each.data_type) + 7) // 8 for each in self.constants)

    def show(self, graph: Graph, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Make the constant."""
        self.held = DecodedValues(self, graph, shape, dtype)
        self.constant = Constant(self.name, self.held, graph.model)
        self.constant.as_node = self.scope.kind == "function"
        self.constant.was_used = True

    def decoded(self) -> Array:
        """The values that the decoder makes."""
        assert self.decoders is not None
        return self.decoders.value(self.outputs[0])

    def takes(self, graph: Graph) -> bool:
        """Whether the decoder makes the constant's present values, if need be from other data."""
        return self.constant._values is self.held or same_bits(np.asarray(self.constant.values), self.held.load())

    def hide(self, graph: Graph) -> None:
        """What changes beside the nodes when the constant comes in sight."""

    def reveal(self, graph: Graph) -> None:
        """What changes beside the nodes when the decoder comes in sight."""


@dataclass(eq=False, kw_only=True)
class CastView(View):
    """A constant of a shorter float type behind Casts and changes of form: other values can be stored like it.

    steps: the nodes of a decoder from the constant on. shapes: of what goes into each of them.
    """

    source: Constant
    steps: list[Node]
    shapes: list[tuple[int, ...]]
    short: Encoding | None = None  # how the stored values are made, as the file has it
    wide: Encoding | None = None  # the same of what the decoder makes

    @property
    def name(self) -> str:
        """That of the constant in the file: the user knows the weight by it."""
        return str(self.source.name)

    @property
    def written(self) -> list[Node]:
        return self.steps

    @property
    def key(self) -> str:
        """The name by which the whole model knows the weight."""
        return self.scope.key(self.name)

    def decoded(self) -> Array:
        return self._forward(np.asarray(self.source.values))

    def takes(self, graph: Graph) -> bool:
        encoding, is_same = graph.encodings.get(self.key), self.constant._values is self.held
        if is_same and encoding is self.wide:
            return True
        if self.constant.dtype != self.held.dtype or tuple(self.constant.shape) != self.held.shape:
            return False
        stored = self._backward(np.asarray(self.constant.values))
        if not is_same and not same_bits(self._forward(stored), np.asarray(self.constant.values)):
            return False
        short = None if encoding is None else self._retyped(encoding, self.source.dtype)
        if encoding is not None and (short is None or short.encode(stored) is None):
            return False  # fewer levels are worth more than a shorter type
        if not is_same:
            self.source.values = stored
            self.held = DecodedValues(self, self._graph, self.held.shape, self.held.dtype)
            self.constant.values = self.held
        self.short, self.wide = short, encoding
        return True

    def hide(self, graph: Graph) -> None:
        self._graph = graph
        self.short = graph.encodings.pop(self.key, None)
        if self.short is not None and self.wide is None:
            self.wide = self._retyped(self.short, self.held.dtype)
        if self.wide is not None:
            graph.encodings[self.key] = self.wide

    def reveal(self, graph: Graph) -> None:
        graph.encodings.pop(self.key, None)
        if self.short is not None:
            graph.encodings[self.key] = self.short

    def _retyped(self, encoding: Encoding, dtype: Any) -> Encoding | None:
        """The encoding for the other side of the Casts; None where these are not all that is between."""
        if any(each.op not in ("Cast", "Identity") for each in self.steps):
            return None
        if isinstance(encoding, RescaledEncoding):
            return None
        return dataclasses.replace(encoding, dtype=str(dtype))

    def _forward(self, values: Array) -> Array:
        shapes = [*self.shapes[1:], self.held.shape]
        for step, shape in zip(self.steps, shapes, strict=True):
            if step.op == "Transpose":
                values = np.transpose(values, order_of(step, values.ndim))
            values = values.reshape(shape).astype(cast_type(step) or values.dtype, copy=False)
        return values

    def _backward(self, values: Array) -> Array:
        """What would have to be stored, rounded where that loses something."""
        kinds = [np.dtype(self.source.dtype)]
        for step in self.steps[:-1]:
            kinds.append(cast_type(step) or kinds[-1])
        with np.errstate(over="ignore", invalid="ignore"):
            for step, shape, kind in reversed(list(zip(self.steps, self.shapes, kinds, strict=True))):
                if step.op == "Transpose":
                    values = np.transpose(values, np.argsort(order_of(step, len(shape))))
                values = values.reshape(shape).astype(kind, copy=False)
        return np.asarray(values, order="C")


class Views:
    """All views of a graph: their constants are in sight while it is edited, their decoders when it is written."""

    def __init__(self, graph: Graph, views: list[View]) -> None:
        self.views = views
        self._revealed = views
        self._place: dict[int, int] = {}
        self._home: dict[int, Scope] = {}
        for scope in graph.scopes:
            self._place.update((id(node), index) for index, node in enumerate(scope.graph.nodes))
            self._home.update((id(each), scope) for each in (*scope.graph.nodes, *scope.constants))

    def take_out(self, graph: Graph) -> None:
        """Put constants in the place of the decoders in sight."""
        for view in self._revealed:
            for output in view.outputs:
                graph.replace_reads(output, view.constant)
            view.scope.constants.append(view.constant)
            view.hide(graph)
        hidden = self._unneeded(graph)
        for scope in graph.scopes:
            scope.graph.nodes = [each for each in scope.graph.nodes if each not in hidden]
            scope.constants = [each for each in scope.constants if each not in hidden]
        self._revealed = []

    def put_back(self, graph: Graph) -> None:
        """Put decoders in the place of the constants that they make as these are now."""
        self._revealed = [view for view in self.views if self._stands(graph, view) and view.takes(graph)]
        for view in self._revealed:
            for node in view.written:
                self._insert(node)
            for constant in view.constants:
                home = self._home[id(constant)]
                if constant not in home.constants:
                    home.constants.append(constant)
            view.scope.constants = [each for each in view.scope.constants if each is not view.constant]
            graph.replace_reads(view.constant, view.outputs[0])
            view.reveal(graph)

    def _unneeded(self, graph: Graph) -> set[Any]:
        """What nothing in sight reads: nodes and constants of decoders."""
        outputs = {id(out) for scope in graph.scopes for out in scope.graph.outputs}
        hidden: set[Any] = {each for view in self.views for each in view.nodes}
        before = -1
        while before != len(hidden):
            before = len(hidden)
            hidden = {node for node in hidden if all(reader in hidden for reader in node.outputs[0].outputs)}
        held = {each for view in self.views for each in view.constants}
        return hidden | {
            each for each in held if id(each) not in outputs and all(reader in hidden for reader in each.outputs)
        }

    def _stands(self, graph: Graph, view: View) -> bool:
        """Whether the constant is where it was, for nodes to read."""
        constant = view.constant
        is_there = any(each is view.scope for each in graph.scopes) and constant in view.scope.constants
        return is_there and bool(constant.outputs) and not graph.is_output(constant)

    def _insert(self, node: Node) -> None:
        """Put a node where it stood among its scope's nodes."""
        nodes = self._home[id(node)].graph.nodes
        if node in nodes:
            return
        own = self._place[id(node)]
        at = next((i for i, each in enumerate(nodes) if self._place.get(id(each), -1) > own), len(nodes))
        nodes.insert(at, node)
