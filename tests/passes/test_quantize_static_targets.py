"""quantize-static on targets that are not installed: the form of what it writes, and that it is right on CPU."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.contract import Context
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import Model
from onnxcomp.registry import get_pass
from onnxcomp.target import PROVIDERS, STYLES, Target
from tests.passes.statically import assert_close, calibration, drawn, model_of

QuantizeStatic = get_pass("quantize-static")
RESIDUAL = """g (float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, W, b) r = Relu(a)
    c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r, V, b) s = Add(c, r) t = Relu(s)
    p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, U, u) }"""
WEIGHTS = {
    "W": drawn(4, 3, 3, 3), "V": drawn(4, 4, 3, 3, seed=8) / 4, "U": drawn(5, 4), "b": drawn(4), "u": drawn(5),
}  # fmt: skip
ATTENTION = """g (float[N,6,16] x) => (float[N,6,16] y) {
    q = MatMul(x, Q) k = MatMul(x, K) t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) p = Softmax(s)
    v = MatMul(x, V) c = MatMul(p, v) n = LayerNormalization(c, g, h) y = Gelu(n) }"""


class Placed:
    """A quantized model's nodes by the tensor that they make."""

    def __init__(self, model: Model) -> None:
        graph = model.proto.graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        self.nodes = list(graph.node)

    def on_grid(self, tensor: str) -> bool:
        """Whether a tensor comes from DequantizeLinear."""
        return tensor in self.makers and self.makers[tensor].op_type == "DequantizeLinear"

    def leads_to(self, node: onnx.NodeProto) -> list[str]:
        """The operators that read what a node makes."""
        return [each.op_type for each in self.nodes if set(node.output) & set(each.input)]

    def of(self, op: str) -> list[onnx.NodeProto]:
        """The nodes of an operator."""
        return [each for each in self.nodes if each.op_type == op]

    def codes(self, tensor: str) -> Any:
        """The codes behind a constant that comes from DequantizeLinear."""
        return self.arrays[self.makers[tensor].input[0]]

    def zero_points(self) -> list[Any]:
        """Those of all activations."""
        return [self.arrays[each.input[2]] for each in self.of("QuantizeLinear")]


def quantized_for(name: str, model: Model, feeds: dict[str, Any], **fields: Any) -> Placed:
    """The model quantized for a target that is described, not installed; it must be right on CPU."""
    target = Target(name=name, provider="CPUExecutionProvider", style=STYLES[name])
    graph = open_graph(model)
    outcome = QuantizeStatic(**fields).apply(graph, Context(target=target, calibration=calibration(model, feeds)))
    result = close_graph(graph)
    onnx.checker.check_model(result.proto, full_check=True)
    assert bool(outcome.changed) is STYLES[name].fast_integer
    assert_close(model, result, feeds, 0.08)
    return Placed(result)


@pytest.fixture
def residual() -> tuple[Model, dict[str, Any]]:
    return model_of(RESIDUAL, **WEIGHTS), {"x": drawn(6, 3, 8, 8)}


def test_tensorrt_quantizes_what_products_read_and_the_residual_branch(residual: Any) -> None:
    placed = quantized_for("tensorrt", *residual)
    for node in (*placed.of("Conv"), *placed.of("Gemm")):
        assert placed.on_grid(node.input[0]) and placed.on_grid(node.input[1])
        assert node.input[2] in placed.arrays and placed.arrays[node.input[2]].dtype == np.float32
        assert placed.codes(node.input[1]).dtype == np.int8
    assert [placed.leads_to(each) for each in placed.of("Conv")] == [["Relu"], ["Add"]]
    (add,) = placed.of("Add")
    assert [placed.on_grid(each) for each in add.input] == [False, True]
    assert all(each.dtype == np.int8 and each == 0 for each in placed.zero_points())


def test_openvino_keeps_biases_and_results_of_products_in_float(residual: Any) -> None:
    placed = quantized_for("openvino", *residual)
    for node in (*placed.of("Conv"), *placed.of("Gemm")):
        assert placed.on_grid(node.input[0]) and placed.arrays[node.input[2]].dtype == np.float32
    assert not placed.on_grid("y")
    assert all(placed.on_grid(each) for each in placed.of("Add")[0].input)
    assert all(each.dtype == np.uint8 for each in placed.zero_points())
    assert any(each != 0 for each in placed.zero_points())


def test_qnn_has_every_tensor_on_a_grid_and_no_relu(residual: Any) -> None:
    placed = quantized_for("qnn", *residual)
    assert not placed.of("Relu")
    for node in placed.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        assert all(placed.on_grid(each) for each in node.input if each)
        assert placed.leads_to(node) == ["QuantizeLinear"], node.op_type
    assert placed.on_grid("y")
    (gemm,) = placed.of("Gemm")
    assert placed.arrays[placed.makers[gemm.input[1]].input[1]].shape == ()
    assert placed.arrays[placed.makers[placed.of("Conv")[0].input[1]].input[1]].shape == (4,)


def test_qnn_quantizes_attention_and_normalization_too() -> None:
    model = model_of(ATTENTION, 20, Q=drawn(16, 16), K=drawn(16, 16, seed=8) / 9, V=drawn(16, 16, seed=9),
                     g=drawn(16, seed=3), h=drawn(16, seed=4))  # fmt: skip
    placed = quantized_for("qnn", model, {"x": drawn(4, 6, 16)})
    for op in ("MatMul", "Softmax", "LayerNormalization", "Gelu", "Transpose"):
        for node in placed.of(op):
            assert all(placed.on_grid(each) for each in node.input), op
            assert placed.leads_to(node) == ["QuantizeLinear"], op
    assert placed.codes(placed.of("LayerNormalization")[0].input[2]).dtype == np.int32


@pytest.mark.parametrize("name", ["coreml", "cuda", "webgpu"])
def test_targets_without_integer_kernels_are_left_in_float(name: str, residual: Any) -> None:
    assert not quantized_for(name, *residual).of("QuantizeLinear")


@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_every_target_gets_a_model_that_is_right(name: str, residual: Any) -> None:
    quantized_for(name, *residual)


@pytest.mark.parametrize("activation", ["uint16", "int16"])
def test_sixteen_bit_activations_raise_the_opset_and_are_finer(activation: str, residual: Any) -> None:
    placed = quantized_for("qnn", *residual, activation=activation)
    assert {each.dtype for each in placed.zero_points()} == {np.dtype(activation)}
    scales = [float(placed.arrays[each.input[1]]) for each in placed.of("QuantizeLinear")]
    coarse = quantized_for("qnn", *residual)
    for fine, plain in zip(scales, coarse.of("QuantizeLinear"), strict=True):
        assert fine * 257 == pytest.approx(float(coarse.arrays[plain.input[1]]), rel=0.05)


def test_weights_may_be_uint8(residual: Any) -> None:
    placed = quantized_for("qnn", *residual, weight="uint8")
    assert all(placed.codes(each.input[1]).dtype == np.uint8 for each in placed.of("Conv"))


def test_fields_overrule_the_target(residual: Any) -> None:
    placed = quantized_for("qnn", *residual, activation="int8", symmetric="yes", granularity="tensor")
    assert all(each.dtype == np.int8 and each == 0 for each in placed.zero_points())
    assert all(placed.arrays[placed.makers[each.input[1]].input[1]].shape == () for each in placed.of("Conv"))
