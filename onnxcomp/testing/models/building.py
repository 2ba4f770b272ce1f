"""The model under construction: a running tensor of known shape that blocks extend node by node.

Every running tensor is float32 and has the batch as its first axis, so blocks can follow each other in
any order. The batch may be symbolic in the model; `BATCH` is its size where the model fixes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.testing.models.choosing import Chooser, T, chance, choice

BATCH = 2
FUNCTION_DOMAIN = "tests.functions"
MICROSOFT = "com.microsoft"
LAST_QDQ_OPSET = 27  # ONNX Runtime 1.32 loads opset 28, but has no kernels for its QuantizeLinear and DequantizeLinear


@dataclass(frozen=True)
class Value:
    """A float32 tensor of the graph; `shape[0]` is the batch."""

    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def sample_size(self) -> int:
        """Number of elements of one sample."""
        return int(np.prod(self.shape[1:]))


@dataclass
class ModelState:
    """What all scopes of one model have in common."""

    chooser: Chooser
    random: np.random.Generator
    opset: int
    ir_version: int
    symbolic_batch: bool
    counter: int = 0
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)


class Builder:
    """One scope of a model, the main graph or a subgraph; nodes, constants and weights are added to it."""

    def __init__(self, state: ModelState, outer: "Builder | None" = None) -> None:
        self.state = state
        self.outer = outer
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.sparse_initializers: list[onnx.SparseTensorProto] = []
        self.outputs: list[Value] = []
        self.weights: dict[tuple[int, ...], list[str]] = {}

    @property
    def opset(self) -> int:
        return self.state.opset

    @property
    def random(self) -> np.random.Generator:
        return self.state.random

    @property
    def initializers_need_inputs(self) -> bool:
        """IR versions up to 3 want every initializer among the graph's inputs."""
        return self.state.ir_version <= 3

    @property
    def may_hold_initializers(self) -> bool:
        """A branch has no inputs, so under IR 3 it cannot hold initializers."""
        return self.outer is None or not self.initializers_need_inputs

    def subgraph(self) -> "Builder":
        """Return the builder of a branch or body that sees the values of this scope."""
        return Builder(self.state, outer=self)

    def integer(self, low: int, high: int) -> int:
        return self.state.chooser.integer(low, high)

    def choice(self, options: Sequence[T]) -> T:
        return choice(self.state.chooser, options)

    def chance(self, percent: int) -> bool:
        return chance(self.state.chooser, percent)

    def name(self, stem: str) -> str:
        """Return a name that no other value or node of the model has."""
        self.state.counter += 1
        return f"{stem}_{self.state.counter}"

    def nodes_out(
        self, op: str, inputs: Sequence[str], count: int, *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with `count` outputs and return their names."""
        outputs = [self.name(op.lower()) for _ in range(count)]
        node_name = self.name(f"node_{op}") if self.chance(80) else ""
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=node_name, domain=domain, **attributes))
        if domain:
            self.state.domains.add(domain)
        return outputs

    def node(self, op: str, inputs: Sequence[str], *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        return self.nodes_out(op, inputs, 1, domain=domain, **attributes)[0]

    def initializer(self, array: np.ndarray, *, typed: bool = False, as_input: bool = False) -> str:
        """Add an initializer; `typed` keeps it in the typed field of the proto instead of raw bytes."""
        name = self.name("weight")
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
        if typed:
            tensor = helper.make_tensor(name, tensor.data_type, array.shape, array.ravel().tolist())
        self.add_initializer(tensor, as_input=as_input)
        return name

    def add_initializer(self, tensor: TensorProto, *, as_input: bool = False) -> None:
        """Add an initializer; it is an input too when asked for or when the IR version wants it."""
        self.initializers.append(tensor)
        if as_input or self.initializers_need_inputs:
            self.inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    def constant_node(self, array: np.ndarray) -> str:
        """Add a Constant node holding `array`."""
        if self.opset >= 12 and array.dtype == np.float32 and self.chance(30):
            if array.ndim == 0:
                return self.node("Constant", [], value_float=float(array))
            if array.ndim == 1 and array.size:
                return self.node("Constant", [], value_floats=array.tolist())
        return self.node("Constant", [], value=numpy_helper.from_array(array, self.name("value")))

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """Add a small constant (axes, shapes, scalars) as an initializer or a Constant node."""
        array = np.asarray(values, dtype=dtype)
        if self.may_hold_initializers and self.chance(50):
            return self.initializer(array)
        return self.constant_node(array)

    def normal(self, shape: Sequence[int], *, scale: float = 1.0) -> np.ndarray:
        """Return normal values times `scale`, float32."""
        return (self.random.standard_normal(tuple(shape)) * scale).astype(np.float32)

    def input(self, shape: Sequence[int], dtype: int = TensorProto.FLOAT, *, stem: str = "input") -> Value:
        """Add a graph input to the main graph; its first axis is the batch."""
        scope = self
        while scope.outer is not None:
            scope = scope.outer
        name = self.name(stem)
        declared: list[int | str] = list(shape)
        if self.state.symbolic_batch and declared:
            declared[0] = "batch"
        scope.inputs.append(helper.make_tensor_value_info(name, dtype, declared))
        return Value(name, tuple(shape))

    def reshape(self, value: Value, sample_shape: Sequence[int]) -> Value:
        """Reshape every sample of `value`, leaving the batch as it is."""
        leading = self.choice([0, -1] if self.state.symbolic_batch else [0, -1, BATCH])
        target = self.constant([leading, *sample_shape])
        return Value(self.node("Reshape", [value.name, target]), (value.shape[0], *sample_shape))

    def transpose(self, value: Value, perm: Sequence[int]) -> Value:
        """Permute the axes of `value`."""
        return Value(self.node("Transpose", [value.name], perm=list(perm)), tuple(value.shape[axis] for axis in perm))

    def graph(self, name: str, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """Return this scope as a GraphProto."""
        graph = helper.make_graph(self.nodes, name, self.inputs, list(outputs), self.initializers)
        graph.sparse_initializer.extend(self.sparse_initializers)
        return graph

    def declare(self, value: Value) -> onnx.ValueInfoProto:
        """Return the value info of `value` with the batch as the model declares it."""
        declared: list[int | str] = list(value.shape)
        if self.state.symbolic_batch:
            declared[0] = "batch"
        return helper.make_tensor_value_info(value.name, TensorProto.FLOAT, declared)


BlockFunction = Callable[[Builder, Value], Value]


@dataclass(frozen=True)
class Block:
    """A way to extend the running tensor: which ranks it takes, from which opset on, whether it grows it."""

    name: str
    extend: BlockFunction
    ranks: tuple[int, ...]
    opset: int
    last_opset: int
    ir_version: int
    grows: bool
    nests: bool

    def fits(self, builder: Builder, value: Value) -> bool:
        """Return whether this block can follow `value`."""
        return (
            value.rank in self.ranks
            and self.opset <= builder.opset <= self.last_opset
            and builder.state.ir_version >= self.ir_version
            and not (self.grows and value.sample_size > 512)
            and not (self.nests and builder.outer is not None)
        )


BLOCKS: dict[str, Block] = {}


def block(
    *,
    ranks: Sequence[int] = (2, 3, 4, 5),
    opset: int = 9,
    last_opset: int = 99,
    ir_version: int = 0,
    grows: bool = False,
    nests: bool = False,
) -> Callable[[BlockFunction], BlockFunction]:
    """Register a function as a block; `nests` ones hold subgraphs and stay out of other subgraphs."""

    def register(function: BlockFunction) -> BlockFunction:
        BLOCKS[function.__name__] = Block(
            function.__name__, function, tuple(ranks), opset, last_opset, ir_version, grows, nests
        )
        return function

    return register
