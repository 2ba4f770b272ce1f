"""Rules of ONNX Runtime's own operators against ONNX Runtime's own kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

pytest.importorskip("torch", reason="torch is not installed: pip install 'onnxcomp[train]', or make test-torch")

from onnxcomp.model import load
from onnxcomp.runtime.session import Session
from onnxcomp.training.torch_graph.executor import Executor
from onnxcomp.training.torch_graph.rule_table import RULES

Array = NDArray[Any]
RNG = np.random.default_rng(0)
U8 = np.array(120, np.uint8)


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return (np.abs(RNG.normal(size=shape)) + 0.1).astype(np.float32)


def codes(*shape: int) -> Array:
    return RNG.integers(0, 255, shape).astype(np.uint8)


def signed(*shape: int) -> Array:
    return RNG.integers(-100, 100, shape).astype(np.int8)


def number(value: float) -> Array:
    return np.array(value, np.float32)


X = normal(2, 6, 8)
Q = (codes(2, 3, 6, 6), number(0.1), U8)
ROTARY = (normal(16, 4), normal(16, 4))
QKV = (normal(2, 6, 8), normal(8, 24), normal(24))
CASES: dict[str, tuple[str, list[Array | None], dict[str, Any], int]] = {
    "Gelu": ("Gelu", [X], {}, 1),
    "BiasGelu": ("BiasGelu", [X, normal(8)], {}, 1),
    "FastGelu": ("FastGelu", [X, normal(8)], {}, 1),
    "QuickGelu": ("QuickGelu", [X], {"alpha": 1.5}, 1),
    "SkipLayerNormalization": (
        "SkipLayerNormalization", [X, normal(2, 6, 8), normal(8), normal(8), normal(8)], {"epsilon": 1e-3}, 4),
    "SkipSimplifiedLayerNormalization": (
        "SkipSimplifiedLayerNormalization", [X, normal(2, 6, 8), normal(8)], {"epsilon": 1e-3}, 4),
    "EmbedLayerNormalization": (
        "EmbedLayerNormalization",
        [RNG.integers(0, 9, (2, 4)).astype(np.int32), RNG.integers(0, 2, (2, 4)).astype(np.int32), normal(9, 8),
         normal(6, 8), normal(2, 8), normal(8), normal(8), np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.int32)], {}, 2),
    "FusedMatMul": ("FusedMatMul", [normal(2, 5, 3), normal(2, 5, 4)], {"transA": 1, "alpha": 0.5}, 1),
    "FusedMatMul, transposed batch": (
        "FusedMatMul", [normal(3, 2, 5), normal(2, 5, 4)], {"transBatchA": 1, "alpha": 2.0}, 1),
    "FusedGemm": (
        "FusedGemm", [normal(3, 4), normal(5, 4), normal(5)],
        {"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.2}, 1),
    "FusedConv": (
        "FusedConv", [normal(1, 3, 6, 6), normal(4, 3, 3, 3), normal(4), normal(1, 4, 6, 6)],
        {"pads": [1] * 4, "activation": "Relu"}, 1),
    "FusedConv, clipped": (
        "FusedConv", [normal(1, 3, 6, 6), normal(4, 3, 3, 3), normal(4)],
        {"activation": "Clip", "activation_params": [0.0, 1.0]}, 1),
    "Inverse": ("Inverse", [normal(2, 3, 3) + 3 * np.eye(3, dtype=np.float32)], {}, 1),
    "ExpandDims": ("ExpandDims", [X, np.array(1, np.int32)], {}, 1),
    "Trilu": ("Trilu", [normal(2, 4, 5), np.array(1, np.int64)], {"upper": 0}, 1),
    "CDist": ("CDist", [normal(4, 3), normal(5, 3)], {"metric": "euclidean"}, 1),
    "Attention": ("Attention", [*QKV, np.array([4, 6], np.int32)], {"num_heads": 2}, 1),
    "Attention, causal": (
        "Attention", [*QKV, RNG.integers(0, 2, (2, 6)).astype(np.int32) | np.eye(2, 6, dtype=np.int32)],
        {"num_heads": 2, "scale": 0.3}, 1),
    "Attention, past": (
        "Attention", [*QKV, None, normal(2, 2, 2, 3, 4)], {"num_heads": 2, "unidirectional": 1}, 2),
    "Attention, uneven": (
        "Attention", [normal(2, 6, 8), normal(8, 28), normal(28), None, None, normal(2, 2, 6, 6)],
        {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 12]}, 1),
    "MultiHeadAttention": (
        "MultiHeadAttention",
        [X, normal(2, 7, 8), normal(2, 7, 8), normal(24), np.array([5, 7], np.int32), normal(1, 2, 6, 7)],
        {"num_heads": 2}, 1),
    "MultiHeadAttention, past": (
        "MultiHeadAttention",
        [X, normal(2, 6, 8), normal(2, 6, 8), None, None, None, normal(2, 2, 3, 4), normal(2, 2, 3, 4)],
        {"num_heads": 2, "unidirectional": 1}, 3),
    "GroupQueryAttention": (
        "GroupQueryAttention",
        [normal(2, 5, 64), normal(2, 5, 32), normal(2, 5, 32), None, None, np.array([4, 4], np.int32),
         np.array(5, np.int32), normal(16, 8), normal(16, 8)],
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1}, 3),
    "RotaryEmbedding": (
        "RotaryEmbedding", [normal(2, 3, 16), np.array([[0, 1, 2], [3, 4, 5]], np.int64), *ROTARY], {}, 1),
    "RotaryEmbedding, interleaved": (
        "RotaryEmbedding", [normal(2, 2, 3, 8), np.array([2], np.int64), *ROTARY], {"interleaved": 1}, 1),
    "QuantizeLinear": ("QuantizeLinear", [X, number(0.02), np.array(9, np.uint16)], {}, 1),
    "DequantizeLinear": ("DequantizeLinear", [codes(2, 3), number(0.02), U8], {}, 1),
    "QLinearAdd": ("QLinearAdd", [*Q, codes(2, 3, 6, 6), number(0.2), U8, number(0.3), U8], {}, 1),
    "QLinearMul": ("QLinearMul", [*Q, codes(3, 1, 1), number(0.02), U8, number(0.3), U8], {}, 1),
    "QLinearSigmoid": ("QLinearSigmoid", [*Q, number(1 / 255), np.array(0, np.uint8)], {}, 1),
    "QLinearLeakyRelu": ("QLinearLeakyRelu", [*Q, number(0.1), U8], {"alpha": 0.2}, 1),
    "QLinearGlobalAveragePool": ("QLinearGlobalAveragePool", [*Q, number(0.05), U8], {"channels_last": 0}, 1),
    "QLinearAveragePool": (
        "QLinearAveragePool", [*Q, number(0.1), U8], {"kernel_shape": [2, 2], "strides": [2, 2]}, 1),
    "QLinearSoftmax": ("QLinearSoftmax", [codes(3, 8), number(0.1), U8, number(1 / 256), np.array(0, np.uint8)],
                       {"axis": 1, "opset": 13}, 1),
    "QLinearConcat": (
        "QLinearConcat", [number(0.2), U8, codes(2, 3), number(0.1), U8, codes(2, 4), number(0.3), U8], {"axis": 1}, 1),
    "MatMulIntegerToFloat": (
        "MatMulIntegerToFloat",
        [codes(3, 4), signed(4, 5), number(0.1), positive(5), np.array(7, np.uint8), signed(5), normal(5)], {}, 1),
    "DynamicQuantizeMatMul": (
        "DynamicQuantizeMatMul", [normal(3, 4), signed(4, 5), positive(1), None, normal(5)], {}, 1),
    "QGemm": (
        "QGemm", [codes(3, 4), number(0.1), U8, signed(5, 4), positive(5), np.zeros(5, np.int8),
                  np.arange(5, dtype=np.int32), None, None], {"transB": 1}, 1),
    "QAttention": (
        "QAttention", [codes(2, 6, 8), signed(8, 24), normal(24), number(0.01), number(0.02), None, U8,
                       np.array(0, np.int8)], {"num_heads": 2}, 1),
    "MatMulNBits": (
        "MatMulNBits", [normal(3, 32), codes(5, 2, 8), positive(5, 2), codes(5, 1)],
        {"K": 32, "N": 5, "bits": 4, "block_size": 16, "accuracy_level": 1}, 1),
    "MatMulNBits, 8 bits": (
        "MatMulNBits", [normal(3, 32), codes(5, 2, 16), positive(5, 2)],
        {"K": 32, "N": 5, "bits": 8, "block_size": 16, "accuracy_level": 1}, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_onnx_runtime(name: str) -> None:
    op, inputs, attributes, outputs = CASES[name]
    model = alone(op, inputs, attributes, outputs)
    feeds = {} if op == "QLinearConcat" else {"i0": inputs[0]}
    expected = Session(model.SerializeToString(), optimization="none").run(feeds)
    got = Executor(load(model), threads=1).outputs_of(feeds, {})
    for key, value in expected.items():
        step = 1 if value.dtype.kind in "iu" else 0  # a value between two whole numbers may go either way
        np.testing.assert_allclose(got[key].astype(float), value.astype(float), rtol=2e-5, atol=2e-5 + step)
        assert got[key].dtype == value.dtype


def test_every_operator_is_compared() -> None:
    compared = {op for op, *_ in CASES.values()}
    assert {op for domain, op in RULES if domain == "com.microsoft"} == compared


def alone(op: str, inputs: list[Array | None], attributes: dict[str, Any], outputs: int) -> onnx.ModelProto:
    """A model of the node; all inputs but the first are initializers."""
    names = ["" if each is None else f"i{place}" for place, each in enumerate(inputs)]
    made = [f"o{place}" for place in range(outputs)]
    if op.startswith("Skip"):  # the two outputs between have no values for inference
        made[1] = made[2] = ""
    node = helper.make_node(op, names, made, domain="com.microsoft", **attributes)
    first = inputs[0]
    assert first is not None
    kind = helper.np_dtype_to_tensor_dtype(first.dtype)
    held = [numpy_helper.from_array(each, name) for each, name in zip(inputs, names, strict=True) if each is not None]
    graph = helper.make_graph(
        [node], "alone", [helper.make_tensor_value_info("i0", kind, first.shape)],
        [onnx.ValueInfoProto(name=each) for each in made if each], held[1:],
    )  # fmt: skip
    if op == "QLinearConcat":
        graph.initializer.insert(0, held[0])
        del graph.input[:]
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, ir_version=9, opset_imports=versions)
