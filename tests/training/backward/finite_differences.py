"""Gradients of a model beside central differences of what onnx's reference evaluator computes in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnxcomp.model import load
from onnxcomp.runtime.session import evaluate
from onnxcomp.training.backward.engine import BackwardEngine

Array = NDArray[Any]
STEP = 1e-6
FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


def check_rule(
    op: str,
    inputs: Sequence[Array | None],
    *,
    outputs: int | Sequence[int] = 1,
    opset: int = 18,
    domain: str = "",
    fixed: Sequence[int] = (),
    tolerance: float = 2e-3,
    seed: int = 0,
    dynamic: bool = True,
    known: Sequence[int] = (),
    by_runtime: float = 0.0,
    **attrs: Any,
) -> None:
    """Hold an operator's rule to finite differences, with shapes known and with shapes open.

    inputs: float32 ones are trained but for those at ``fixed``; the shapes of those at ``known`` are never open.
    outputs: how many, or which of so many count. by_runtime: differences of what ONNX Runtime computes in float32,
    this far up and down, for operators that onnx's reference evaluator does not know well.
    """
    model = rule_model(
        op, inputs, outputs=outputs, opset=opset, domain=domain, seed=seed, attrs=attrs, by_runtime=by_runtime
    )
    floats = [i for i, each in enumerate(inputs) if each is not None and each.dtype == np.float32 and i not in fixed]
    values = {f"i{index}": np.asarray(inputs[index]) for index in floats}
    gradients = check_model(model, values, {}, tolerance=tolerance, seed=seed, by_runtime=by_runtime)
    if dynamic:
        check_open_shapes(model, values, gradients, tolerance, [f"i{index}" for index in known])


def rule_model(
    op: str,
    inputs: Sequence[Array | None],
    *,
    outputs: int | Sequence[int] = 1,
    opset: int = 18,
    domain: str = "",
    seed: int = 0,
    attrs: Mapping[str, Any] | None = None,
    by_runtime: float = 0.0,
) -> ModelProto:
    """One node on initializers i0, i1, ...; the loss is a drawn linear function of its float outputs."""
    names = [f"i{index}" if each is not None else "" for index, each in enumerate(inputs)]
    held = [numpy_helper.from_array(each, name) for name, each in zip(names, inputs, strict=True) if each is not None]
    count, counted = (outputs, range(outputs)) if isinstance(outputs, int) else (max(outputs) + 1, outputs)
    node = helper.make_node(op, names, [f"y{index}" for index in range(count)], domain=domain, **(attrs or {}))
    proto = _model([node], held, [f"y{index}" for index in counted], opset, domain)
    made = list(evaluate(proto.SerializeToString()).values()) if by_runtime else _reference_of(proto).run(None, {})
    rng = np.random.default_rng(seed + 1)
    nodes, terms = [node], []
    for index, each in zip(counted, made, strict=True):
        held.append(numpy_helper.from_array(rng.normal(size=each.shape).astype(np.float32), f"c{index}"))
        nodes.append(helper.make_node("Mul", [f"y{index}", f"c{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("ReduceSum", [f"m{index}"], [f"s{index}"], keepdims=0))
        terms.append(f"s{index}")
    nodes.append(helper.make_node("Sum", terms, ["loss"]))
    return _model(nodes, held, ["loss"], opset, domain)


class Erf(OpRun):
    """In float64; onnx's own rounds to float32."""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[np.float64])(x),)


class Gelu(OpRun):
    """In float64; onnx's own rounds to float32."""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        if approximate == "tanh":
            return (0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / np.sqrt(2.0))),)


class LRN(OpRun):
    """Of all channels; onnx's own stops at the number of samples."""

    def _run(self, x: Array, alpha: float, beta: float, bias: float, size: int) -> tuple[Array]:
        sums = np.zeros_like(x)
        for channel in range(x.shape[1]):
            first, last = max(0, channel - (size - 1) // 2), channel + size - (size - 1) // 2
            sums[:, channel] = np.sum(x[:, first:last] ** 2, axis=1)
        return (x / (bias + alpha / size * sums) ** beta,)


def _reference_of(proto: ModelProto) -> ReferenceEvaluator:
    return ReferenceEvaluator(proto, new_ops=[Erf, Gelu, LRN])


def _model(
    nodes: Sequence[onnx.NodeProto], held: Sequence[TensorProto], outputs: Sequence[str], opset: int, domain: str
) -> ModelProto:
    infos = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", [], infos, list(held))
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def check_model(
    proto: ModelProto,
    values: Mapping[str, Array],
    feeds: Mapping[str, Array],
    *,
    loss: str = "loss",
    tolerance: float = 2e-3,
    directions: int = 2,
    per_element: int = 4,
    seed: int = 0,
    by_runtime: float = 0.0,
    floor: float = 0.0,
) -> dict[str, Array]:
    """Hold the engine's gradients of a model to differences: each element of small parameters, directions in others.

    floor: what may differ whatever the size of a gradient.
    """
    engine = BackwardEngine(load(proto), loss, list(values))
    _, gradients = engine.loss_and_gradients(feeds, values)
    differ: Differences | RuntimeDifferences = (
        Differences(proto, loss, values, feeds)
        if not by_runtime
        else (RuntimeDifferences(proto, loss, values, feeds, by_runtime))
    )
    rng = np.random.default_rng(seed)
    for name, value in values.items():
        assert gradients[name].shape == value.shape
        assert gradients[name].dtype == value.dtype
        drawn = rng.normal(size=(directions, value.size))
        ways = np.eye(value.size) if value.size <= per_element else drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        expected = np.array([differ.along({name: way.reshape(value.shape)}) for way in ways])
        found = ways @ gradients[name].astype(np.float64).reshape(-1)
        scale = np.linalg.norm(gradients[name]) / max(value.size, 1) ** 0.5 + 1e-6
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale + floor, err_msg=name)
    return gradients


class Differences:
    """The derivative of a loss by central differences in float64."""

    def __init__(self, proto: ModelProto, loss: str, values: Mapping[str, Array], feeds: Mapping[str, Array]) -> None:
        self._values = {name: value.astype(np.float64) for name, value in values.items()}
        self._feeds = {name: _doubled(value) for name, value in feeds.items()}
        self._loss = loss
        self._evaluator = _reference_of(as_double(proto, values))

    def along(self, ways: Mapping[str, Array]) -> float:
        """The derivative in a direction that is given for some of the parameters."""
        up, down = (
            {**self._values, **{name: self._values[name] + sign * STEP * way for name, way in ways.items()}}
            for sign in (1, -1)
        )
        one, other = (self._evaluator.run([self._loss], {**self._feeds, **each})[0] for each in (up, down))
        return float((np.asarray(one, np.float64) - np.asarray(other, np.float64)).reshape(()) / (2 * STEP))


class RuntimeDifferences:
    """The same by ONNX Runtime in float32, ``reach`` up and down."""

    def __init__(
        self, proto: ModelProto, loss: str, values: Mapping[str, Array], feeds: Mapping[str, Array], reach: float
    ) -> None:
        self._reach = reach
        self._loss, self._values, self._feeds = loss, values, feeds
        self._engine = BackwardEngine(load(proto), loss, list(values))

    def along(self, ways: Mapping[str, Array]) -> float:
        """The derivative in a direction that is given for some of the parameters."""
        up, down = (
            {
                **self._values,
                **{name: self._values[name] + np.float32(sign * self._reach * way) for name, way in ways.items()},
            }
            for sign in (1, -1)
        )
        one, other = (self._engine.forward(self._feeds, each)[self._loss] for each in (up, down))
        return (float(one) - float(other)) / (2 * self._reach)


def check_open_shapes(
    proto: ModelProto,
    values: Mapping[str, Array],
    gradients: Mapping[str, Array],
    tolerance: float,
    known: Sequence[str] = (),
) -> None:
    """The same graph with its parameters computed from inputs of open shapes: value + s * way, where s is trained."""
    opened, feeds, expected = ModelProto(), {}, 0.0
    opened.CopyFrom(proto)
    graph = opened.graph
    kept = [each for each in graph.initializer if each.name not in values]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "s"))
    rng = np.random.default_rng(5)
    nodes = list(graph.node)
    del graph.node[:]
    for name, value in values.items():
        way = rng.normal(size=value.shape).astype(np.float32)
        expected += float(np.sum(way.astype(np.float64) * gradients[name]))
        for suffix, each in ("at", value), ("way", way):
            names = [f"{name}_{suffix}_{axis}" for axis in range(value.ndim)]
            shape = list(value.shape) if name in known else names
            graph.input.append(helper.make_tensor_value_info(f"{name}_{suffix}", FLOAT, shape))
            feeds[f"{name}_{suffix}"] = each
        graph.node.append(helper.make_node("Mul", [f"{name}_way", "s"], [f"{name}_moved"]))
        graph.node.append(helper.make_node("Add", [f"{name}_at", f"{name}_moved"], [name]))
    graph.node.extend(nodes)
    engine = BackwardEngine(load(opened), "loss", ["s"])
    _, found = engine.loss_and_gradients(feeds, {"s": np.zeros((), np.float32)})
    scale = sum(float(np.linalg.norm(each)) for each in gradients.values()) + 1e-6
    np.testing.assert_allclose(found["s"], expected, rtol=tolerance, atol=tolerance * scale)


def as_double(proto: ModelProto, freed: Mapping[str, Array]) -> ModelProto:
    """The model in float64, with these initializers as inputs."""
    made = ModelProto()
    made.CopyFrom(proto)
    _double_graph(made.graph)
    kept = [each for each in made.graph.initializer if each.name not in freed]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    known = {each.name for each in made.graph.input}
    for name, value in freed.items():
        if name not in known:
            made.graph.input.append(helper.make_tensor_value_info(name, DOUBLE, value.shape))
    return made


def _double_graph(graph: GraphProto) -> None:
    for each in (*graph.input, *graph.output, *graph.value_info):
        if each.type.tensor_type.elem_type == FLOAT:
            each.type.tensor_type.elem_type = DOUBLE
    single = {name for node in graph.node for name in _kept_single(node)}
    for index, tensor in enumerate(graph.initializer):
        if tensor.name in single:
            continue
        graph.initializer[index].CopyFrom(_double_tensor(tensor))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                attribute.t.CopyFrom(_double_tensor(attribute.t))
            elif attribute.type == AttributeProto.GRAPH:
                _double_graph(attribute.g)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = DOUBLE


def _kept_single(node: onnx.NodeProto) -> Sequence[str]:
    """Inputs whose type is float32 whatever the operator computes in."""
    return list(node.input[2:3]) if node.op_type == "Resize" else []


def _double_tensor(tensor: TensorProto) -> TensorProto:
    if tensor.data_type != FLOAT:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


def _doubled(value: Array) -> Array:
    return value.astype(np.float64) if value.dtype == np.float32 else value
