"""The node models of onnx as they are tested here: which, on what, and what they give."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcomp.training.torch_graph.rule import plain_domain
from onnxcomp.training.torch_graph.rule_table import RULES

RANDOM = {"Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"}
EXCEPTIONS = {  # what onnx's reference gives and why it is not given here
    "test_resize_downsample_scales_linear_align_corners": "ONNX Runtime goes by the whole number of elements",
    "test_resize_downsample_scales_cubic_align_corners": "the same",
    "test_cast_e8m0_FLOAT_to_FLOAT8E8M0": "torch rounds to the nearest",
    "test_cast_e8m0_FLOAT16_to_FLOAT8E8M0": "torch rounds to the nearest",
    **{
        f"test_{op}_no_saturate_{kind}_to_FLOAT8E4M3FN{form}": "torch's float8 saturates whatever is asked"
        for op, forms in (("cast", ("",)), ("castlike", ("", "_expanded")))
        for kind in ("FLOAT", "FLOAT16")
        for form in forms
    },
}


@dataclass(frozen=True)
class NodeModel:
    """feeds, outputs: by name, as the model types them."""

    name: str
    model: ModelProto
    feeds: dict[str, Any]
    outputs: dict[str, Any]
    rtol: float
    atol: float


@cache
def node_models() -> tuple[NodeModel, ...]:
    """Those of which every operator has a rule or a definition by others that have, but for random ones."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, from the reference implementations of casts and divisions
        collected = collect_testcases(None)
    return tuple(
        NodeModel(
            case.name, case.model, _typed(case.model.graph.input, case.data_sets[0][0]),
            _typed(case.model.graph.output, case.data_sets[0][1]), case.rtol or 1e-3, case.atol or 1e-7,
        )
        for case in collected
        if case.data_sets and _is_meant(case.model) and case.name not in EXCEPTIONS
        and (not case.name.startswith("test_training_dropout") or "zero_ratio" in case.name)
    )  # fmt: skip


def _is_meant(model: ModelProto) -> bool:
    opsets = {plain_domain(each.domain): each.version for each in model.opset_import}
    return all(
        node.op_type not in RANDOM and _has_rule(node.op_type, plain_domain(node.domain), opsets)
        for node in model.graph.node
    )


def _has_rule(op: str, domain: str, opsets: dict[str, int]) -> bool:
    if (domain, op) in RULES:
        return True
    version = opsets.get(domain, 1)
    if not onnx.defs.has(op, version, domain):
        return False
    schema: Any = onnx.defs.get_schema(op, version, domain)
    return bool(schema.has_function or schema.has_context_dependent_function) and op != "FlexAttention"


def _typed(infos: Iterable[onnx.ValueInfoProto], data: Iterable[Any]) -> dict[str, Any]:
    found = {}
    for info, value in zip(infos, data, strict=False):
        kind = info.type.tensor_type.elem_type
        value = _array(value)
        if kind and value is not None and kind != TensorProto.STRING:
            value = np.asarray(value, dtype=helper.tensor_dtype_to_np_dtype(kind))
        found[info.name] = value
    return found


def _array(value: Any) -> Any:
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return [_array(each) for each in value] if isinstance(value, list) else value
