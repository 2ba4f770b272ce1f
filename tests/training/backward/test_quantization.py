"""Quantizing and dequantizing are differentiated straight through; composed, as LSQ (https://arxiv.org/abs/1902.08153)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.model import load
from onnxcomp.training.backward.engine import BackwardEngine

RNG = np.random.default_rng(0)
FLOAT = TensorProto.FLOAT


def quantized(nodes: list[Any], held: dict[str, Any]) -> Any:
    """The model of these nodes, whose loss is sum(d * c)."""
    nodes = [*nodes, helper.make_node("Mul", ["d", "c"], ["m"])]
    nodes.append(helper.make_node("ReduceSum", ["m"], ["loss"], keepdims=0))
    tensors = [numpy_helper.from_array(np.asarray(each), name) for name, each in held.items()]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("loss", FLOAT, ())], tensors)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def lsq(w: Any, scale: Any, zero: Any, c: Any) -> tuple[Any, Any]:
    """The adjoints of values and of the scale at each element, by LSQ's formulas; all of one shape, float64."""
    v = w / scale + zero
    inside = (v >= -128) & (v <= 127)
    rounded = np.clip(np.round(w / scale) + zero, -128, 127) - zero
    return np.where(inside, c, 0.0), c * (rounded - np.where(inside, w / scale, 0.0))


@pytest.mark.parametrize(
    ("axis", "scales", "block"),
    [(None, (), 0), (None, (1,), 0), (0, (4,), 0), (1, (6,), 0), (1, (4, 2), 3), (1, (4, 2), 4)],
)
def test_values_and_scales_as_in_lsq(axis: int | None, scales: tuple[int, ...], block: int) -> None:
    w = RNG.normal(size=(4, 6)).astype(np.float32)
    scale = (np.abs(RNG.normal(size=scales)) * 0.01 + 0.005).astype(np.float32)
    zero = RNG.integers(-20, 20, scales).astype(np.int8)
    c = RNG.normal(size=w.shape).astype(np.float32)
    attrs = {**({} if axis is None else {"axis": axis}), **({"block_size": block} if block else {})}
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], **attrs),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], **attrs),
    ]
    model = quantized(nodes, {"w": w, "s": scale, "z": zero, "c": c})
    _, found = BackwardEngine(model, "loss", ["w", "s"], threads=1).loss_and_gradients({}, {"w": w, "s": scale})

    def wide(each: Any) -> Any:
        if block:
            return np.repeat(each, block, 1)[:, : w.shape[1]].astype(np.float64)
        return each.astype(np.float64).reshape((-1, 1) if axis == 0 else (1, -1))

    by_value, by_scale = lsq(w.astype(np.float64), wide(scale), wide(zero), c.astype(np.float64))
    if block:
        edges = range(0, w.shape[1], block)
        expected = np.stack([by_scale[:, edge : edge + block].sum(1) for edge in edges], 1)
    else:
        expected = by_scale.sum() if axis is None else by_scale.sum(1 - axis)
    np.testing.assert_allclose(found["w"], by_value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["s"], np.reshape(expected, scale.shape), rtol=1e-3, atol=1e-3)


def test_adjoints_pass_what_moves_codes() -> None:
    w = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    scale, c = np.array(0.02, np.float32), RNG.normal(size=(4, 6)).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s"], ["q"], output_dtype=TensorProto.INT8),
        helper.make_node("Transpose", ["q"], ["t"], perm=[2, 0, 1]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "s"], ["d"]),
    ]
    model = quantized(nodes, {"w": w, "s": scale, "c": c, "shape": np.array([4, 6])})
    _, found = BackwardEngine(model, "loss", ["w"], threads=1).loss_and_gradients({}, {"w": w})
    back = c.reshape(4, 2, 3).transpose(1, 2, 0)
    np.testing.assert_allclose(found["w"], np.where(np.abs(w / scale) < 127.5, back, 0.0), rtol=1e-5)


def test_a_scale_of_codes_that_are_not_trained() -> None:
    codes, scale = RNG.integers(-128, 127, (3, 4)).astype(np.int8), np.array([0.1, 0.2, 0.3], np.float32)
    c = RNG.normal(size=(3, 4)).astype(np.float32)
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["d"], axis=0)]
    model = quantized(nodes, {"q": codes, "s": scale, "c": c})
    _, found = BackwardEngine(model, "loss", ["s"], threads=1).loss_and_gradients({}, {"s": scale})
    np.testing.assert_allclose(found["s"], (codes * c).sum(1), rtol=1e-4)
