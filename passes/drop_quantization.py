"""What is quantized and decoded again around float operators is computed in floats, weights and activations alike.

    x -> QuantizeLinear -> DequantizeLinear -> Conv    becomes    x -> Conv
    codes -> DequantizeLinear -> Conv                  becomes    weight -> Conv
    Conv -> QuantizeLinear (zero point lowest) -> DequantizeLinear    becomes    Conv -> Clip(0, largest)

Where ONNX Runtime finds no integer kernel for such pairs (16-bit activations, operators that have none, a layout that
its patterns miss) it computes them at every run, in floats all the same. A grid whose zero point is its lowest code
cuts off what is negative: quantizers leave the Relu before it out, so a Clip takes its place unless nothing there is
negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, Structure
from onnxcomp.errors import TargetError, VerificationError
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import constant_key, constant_value, given, is_onnx, node_key, producer, takes_constant
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.ir.rewire import bypass
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.graph.ir.writer import node_proto, sweep, tensor_proto
from onnxcomp.operators import MICROSOFT, ONNX_DOMAINS
from onnxcomp.runtime import evaluate

NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "HardSigmoid", "Clip", "Abs", "Exp", "Sqrt"})
WHOLE = (np.uint8, np.int8, np.uint16, np.int16)
ATTRIBUTES = ("axis", "block_size", "saturate")
CLIP_INPUTS = 11  # the opset from which on bounds are inputs
FLOATS = (np.float32, np.float64)


@dataclass(frozen=True, kw_only=True)
class DropQuantization(Pass):
    """Compute in floats what stands between QuantizeLinear and DequantizeLinear, weights decoded for good.

    For models whose pairs the target computes in floats all the same; `quantize-static` may follow, and quantizes anew
    for the target. The file grows by what the codes had saved. Left alone are codes that more than DequantizeLinear
    reads on their way (pools, reshapes), inputs and outputs in integers, and scales that are computed.
    """

    effect = Effect(shrinks=("latency",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1712.05877"
    prepared_by = ("inline-functions",)
    destroys = frozenset({Structure.INTEGERS, Structure.LEVELS, Structure.COMPACT})

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for scope in list(graph.scopes):
            if scope.is_in_function:
                continue
            for node in ordered(scope.graph.nodes):
                key = node_key(scope, node)
                if not _is(node, "DequantizeLinear") or node.was_dead or not context.selects(key):
                    continue
                if isinstance(node.inputs[0], Constant):
                    _decode(graph, scope, node, key, outcome)
                else:
                    _join(graph, scope, node, key, outcome)
        if outcome.changed:
            sweep(graph)
        return outcome


def _is(node: Node | None, op: str) -> bool:
    """Whether it is this operator of ONNX's, or of ONNX Runtime's, which had 16 bits first."""
    return node is not None and node.op == op and (node.domain in ONNX_DOMAINS or node.domain == MICROSOFT)


def _decode(graph: Graph, scope: Scope, node: Node, key: str, outcome: Outcome) -> None:
    """Put the floats that constant codes stand for in place of their DequantizeLinear."""
    if constant_key(graph, node.inputs[0]) in graph.encodings:
        outcome.skip(key, "the encoding of its weight would be lost")
        return
    values = _evaluated(graph, scope, node)
    if values is None:
        outcome.skip(key, "what it decodes to cannot be computed beforehand")
        return
    output = node.outputs[0]
    if graph.is_output(output) or not takes_constant(output, values.ndim):
        outcome.skip(key, "its result has to be computed by a node")
        return
    constant = graph.constant(scope, output.name, values)
    graph.remove_node(scope, node)
    graph.replace_reads(output, constant)
    outcome.change(key, "its constant is stored decoded", bytes_after=values.nbytes)


def _evaluated(graph: Graph, scope: Scope, node: Node) -> Array | None:
    """What ONNX Runtime makes of a DequantizeLinear of constants; None where it cannot, or its inputs are computed."""
    inputs = [each for each in node.inputs if each.name]
    if not all(isinstance(each, Constant) for each in inputs):
        return None
    proto = ModelProto(ir_version=max(4, graph.ir_version))
    proto.opset_import.add(version=scope.opset)
    proto.opset_import.add(domain=MICROSOFT, version=1)
    proto.graph.name = "decode"
    names = {each: f"t{index}" for index, each in enumerate(dict.fromkeys(inputs))}
    proto.graph.initializer.extend(tensor_proto(graph, each, name) for each, name in names.items())
    made = NodeProto()
    made.CopyFrom(node_proto(graph, node))
    del made.input[:], made.output[:], made.metadata_props[:]
    made.input.extend(names.get(each, "") for each in node.inputs)
    made.output.append("y")
    proto.graph.node.append(made)
    proto.graph.output.add(name="y")
    try:
        values = evaluate(proto.SerializeToString(), {})["y"]
    except (TargetError, VerificationError):
        return None
    return values if isinstance(values, np.ndarray) else None


def _join(graph: Graph, scope: Scope, node: Node, key: str, outcome: Outcome) -> None:
    """Let what reads a pair read what the pair quantized, clipped where the grid did that for an activation."""
    quantize = producer(node.inputs[0])
    if quantize is None or not _is(quantize, "QuantizeLinear"):
        outcome.skip(key, "its codes do not come from QuantizeLinear")
        return
    source = quantize.inputs[0]
    grid = _grid(node)
    if grid is None or not _same_grid(node, quantize):
        outcome.skip(key, "its grid is not the one of its QuantizeLinear, or not a constant one")
        return
    lowest, highest = grid
    if highest <= 0:
        outcome.skip(key, "its grid cuts off what is positive")
        return
    if lowest >= 0 and not _is_not_negative(source):
        source = _clipped(graph, scope, node, source, highest)
    if not bypass(graph, scope, node, source):
        outcome.skip(key, "an output would lose its name")
        return
    outcome.change(key, "computed in floats")


def _same_grid(node: Node, quantize: Node) -> bool:
    """Whether what is decoded was quantized by the same scale and zero point along the same axis."""
    same = all(_same(given(node, index), given(quantize, index)) for index in (1, 2))
    return same and all(node.attrs.get(name) == quantize.attrs.get(name) for name in ATTRIBUTES)


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    left, right = constant_value(one), constant_value(other)
    return left is not None and right is not None and left.dtype == right.dtype and np.array_equal(left, right)


def _grid(node: Node) -> tuple[float, float] | None:
    """The least and largest value of a grid of whole codes, about its zero point; None where it is not known."""
    scale, zero = constant_value(given(node, 1)), constant_value(given(node, 2))
    if scale is None or scale.dtype not in FLOATS or (zero is None and given(node, 2) is not None):
        return None
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    if kind not in WHOLE:
        return None
    limits, middle = np.iinfo(kind), np.zeros(1) if zero is None else zero.astype(np.float64)
    low, high = (limits.min - middle) * scale, (limits.max - middle) * scale
    return float(np.min(low)), float(np.max(high))


def _is_not_negative(tensor: Any) -> bool:
    """Whether a tensor comes from an operator that gives nothing negative."""
    maker = producer(tensor)
    if maker is None or not is_onnx(maker) or maker.op not in NOT_NEGATIVE:
        return False
    if maker.op != "Clip":
        return True
    least = maker.attrs.get("min") if given(maker, 1) is None else constant_value(given(maker, 1))
    return least is not None and float(np.min(least)) >= 0


def _clipped(graph: Graph, scope: Scope, node: Node, source: Any, highest: float) -> Any:
    """The source cut off below zero and above the grid."""
    clipped = graph.variable(f"{source.name}_clipped", dtype=source.dtype, shape=source.shape)
    inputs, attrs = [source], {}
    if scope.opset >= CLIP_INPUTS:
        dtype = node.inputs[1].dtype
        bounds = (np.asarray(value, dtype) for value in (0.0, highest))
        inputs += [graph.constant(scope, f"{source.name}_bound", each) for each in bounds]
    else:
        attrs = {"min": 0.0, "max": highest}
    graph.node(scope, "Clip", inputs, [clipped], attrs=attrs, before=node)
    return clipped
