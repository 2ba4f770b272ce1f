"""ONNX's own node models as models with a loss: their float inputs are trained, the loss is linear in float outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.conformance.cases import Case

FLOAT = TensorProto.FLOAT


def with_loss(case: Case) -> tuple[ModelProto, dict[str, Any], dict[str, Any]] | None:
    """The model with a loss, the float inputs that are trained, the other inputs; None for what has no such loss.

    Left out are outputs that are no float32 tensors.
    """
    proto = ModelProto()
    proto.CopyFrom(case.model)
    outputs = [each.name for each in proto.graph.output if each.type.tensor_type.elem_type == FLOAT]
    values = {name: each for name, each in case.feeds.items() if _is_trained(each)}
    if not outputs or not values:
        return None
    feeds = {name: each for name, each in case.feeds.items() if name not in values}
    kept = [each for each in proto.graph.input if each.name not in values]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in values.items())
    _add_loss(proto, outputs)
    return proto, values, feeds


def _is_trained(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.size > 0


def _add_loss(proto: ModelProto, names: list[str]) -> None:
    """sum(output * sin(place)), so that no two elements count the same."""
    terms = []
    for name in names:
        made = [f"{name}_loss_{step}" for step in range(7)]
        size, zero, one, places, waves, flat, product = made
        add = proto.graph.node.append
        add(helper.make_node("Size", [name], [size]))
        add(helper.make_node("Constant", [], [zero], value=numpy_helper.from_array(np.array(0, np.int64))))
        add(helper.make_node("Constant", [], [one], value=numpy_helper.from_array(np.array(1, np.int64))))
        add(helper.make_node("Range", [zero, size, one], [places]))
        add(helper.make_node("Cast", [places], [f"{waves}_cast"], to=FLOAT))
        add(helper.make_node("Sin", [f"{waves}_cast"], [waves]))
        add(helper.make_node("Constant", [], [f"{flat}_shape"], value=numpy_helper.from_array(np.array([-1]))))
        add(helper.make_node("Reshape", [name, f"{flat}_shape"], [flat]))
        add(helper.make_node("Mul", [flat, waves], [product]))
        add(helper.make_node("ReduceSum", [product], [f"{name}_sum"], keepdims=0))
        terms.append(f"{name}_sum")
    proto.graph.node.append(helper.make_node("Sum", terms, ["the_loss"]))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("the_loss", FLOAT, ()))
