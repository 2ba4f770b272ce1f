"""Attributes that state what their absence says go away.

    Conv<group = 1, strides = [1, 1], pads = [0, 0, 0, 0], kernel_shape = [3, 3]>(x, w)  ->  Conv(x, w)

Defaults are those of the operator's schema at the model's opset; besides these, strides and dilations of
ones, pads of zeros, the kernel shape that a weight has anyway, and a Transpose that reverses all axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, attribute_value
from onnxcomp.operators import CONVOLUTIONS

KERNEL_OPS = CONVOLUTIONS | {"ConvInteger", "QLinearConv"}
WINDOWS = KERNEL_OPS | {"MaxPool", "AveragePool", "LpPool"}
WINDOW_DEFAULTS = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}


@dataclass(frozen=True, kw_only=True)
class DropDefaults(Pass):
    """Drop attributes that have the operator's default value."""

    effect = Effect(shrinks=("bytes",), exact=Exact.TENSORS)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for scope, node in graph.nodes():
            key = node_key(scope, node)
            if not is_onnx(node) or not node.attrs or not context.selects(key):
                continue
            defaults = _defaults(node.op, scope.opset)
            dropped = [name for name, value in node.attrs.items() if _is_default(node, name, value, defaults)]
            for name in dropped:
                del node.attrs[name]
            if dropped:
                outcome.change(key, "dropped " + ", ".join(dropped))
        return outcome


def _defaults(op: str, opset: int) -> dict[str, Any]:
    """The default of each attribute that has one, in the schema that holds at this opset."""
    if not onnx.defs.has(op, opset):
        return {}
    attributes = onnx.defs.get_schema(op, opset).attributes
    stated = {name: each.default_value for name, each in attributes.items() if not each.required}
    return {name: attribute_value(each) for name, each in stated.items() if each.type != AttributeProto.UNDEFINED}


def _is_default(node: Node, name: str, value: Any, defaults: dict[str, Any]) -> bool:
    if name in defaults:
        return type(value) is type(defaults[name]) and bool(value == defaults[name])
    if not isinstance(value, list):
        return False
    if node.op in WINDOWS and name in WINDOW_DEFAULTS:
        return all(each == WINDOW_DEFAULTS[name] for each in value)
    if node.op in KERNEL_OPS and name == "kernel_shape":
        weight = node.inputs[3 if node.op == "QLinearConv" else 1]
        return isinstance(weight, Constant) and value == list(weight.shape[2:])
    return node.op == "Transpose" and name == "perm" and value == list(range(len(value)))[::-1]
