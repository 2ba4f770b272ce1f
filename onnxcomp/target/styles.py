"""Which integer arithmetic each execution provider runs fast, as a table.

    STYLES["cpu"]  ->  uint8 activations x int8 weights a channel; Conv, Gemm, MatMul compute in integers, Add, Mul,
                       pools, ... do between them; MaxPool, Reshape, ... hand on codes

The pass that quantizes reads nothing but these fields, so a provider is described here and nowhere else. The row of
the CPU was measured, and its operators are those that ONNX Runtime 1.32 replaces by integer kernels, found by looking
at the models that it optimizes. The other rows say what the provider's documentation asks for (``source``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnxcomp.graph.integers.style import CHOOSING, TURNING, QuantizationStyle
from onnxcomp.operators import LINEAR

ASYMMETRIC = QuantizationStyle()
# MLAS convolves without im2col where input channels come in fours and output channels in sixteens.
CPU = replace(
    ASYMMETRIC,
    on_processor=True,
    least_channels=4,
    whole_outputs=16,
    expands=frozenset({"HardSigmoid", "HardSwish"}),
    rescales=True,
    shows_kernels=True,
)
# No integer kernels behind DequantizeLinear: what is stored in integers is computed in float.
STORED_ONLY = replace(
    ASYMMETRIC, fast_integer=False, computes=frozenset(), between=frozenset(), moves=frozenset(), tables=False
)
# Quantize what a weighted operator reads, not what it makes; sums take the residual branch quantized; INT8 about
# zero; the bias stays float, since the parser refuses int32 constants in front of DequantizeLinear.
TENSORRT = QuantizationStyle(
    activation="int8",
    activation_symmetric=True,
    computes=LINEAR,
    between=frozenset({"Add", "AveragePool", "GlobalAveragePool", "Concat"}),
    moves=TURNING | CHOOSING | {"MaxPool", "Resize"},
    float_results=LINEAR,
    products=True,
    tables=False,
    integer_bias=False,
    joins_sums=True,
    source="https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/"
    "quantized-types-explicit-quantization.html",
)
# Its low precision transformations move DequantizeLinear down through these operators. Measured with 1.24 on an EPYC
# with VNNI, against results of Conv in float: resnet8 0.53 instead of 0.57, EfficientNet-Lite0 0.38 instead of 0.39.
OPENVINO = QuantizationStyle(
    on_processor=True,
    computes=LINEAR,
    between=frozenset({
        "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "PRelu", "Clip", "ReduceMean",
        "ReduceSum", "LayerNormalization", "Sub",
    }),
    moves=TURNING | CHOOSING | {"MaxPool", "Resize", "ReduceMax", "Pad"},
    products=True,
    integer_bias=False,
    source="https://docs.openvino.ai/2024/documentation/openvino-extensibility/openvino-plugin-library/"
    "advanced-guides/quantized-models.html",
)  # fmt: skip
# The HTP backend runs integers only, so every operator wants a grid on all sides; scales per channel for
# convolutions only; Relu goes into the grid.
QNN = QuantizationStyle(
    channelled=frozenset({"Conv", "ConvTranspose"}),
    computes=LINEAR,
    between=frozenset({
        "Add", "Sub", "Mul", "Div", "Concat", "Where", "Min", "Max", "AveragePool", "GlobalAveragePool", "Relu", "Clip",
        "LeakyRelu", "PRelu", "HardSwish", "HardSigmoid", "Elu", "Sigmoid", "Tanh", "Softmax", "LogSoftmax", "Gelu",
        "Exp", "Sqrt", "Abs", "Neg", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "LayerNormalization",
        "InstanceNormalization", "GridSample",
    }),
    moves=TURNING | CHOOSING | {"MaxPool", "Resize", "SpaceToDepth", "Pad"},
    float_results=frozenset(),
    everywhere=True,
    products=True,
    drops_clips=True,
    source="https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html",
)  # fmt: skip
NNAPI = replace(
    ASYMMETRIC,
    channelled=frozenset({"Conv"}),
    between=frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "Softmax"}),
    moves=TURNING | {"MaxPool", "Resize", "Gather", "Slice", "Split", "DepthToSpace"},
    float_results=frozenset(),
    products=True,
    drops_clips=True,
    source="https://onnxruntime.ai/docs/execution-providers/NNAPI-ExecutionProvider.html",
)
XNNPACK = QuantizationStyle(
    activation="int8",
    computes=frozenset({"Conv", "ConvTranspose"}),
    between=frozenset({"AveragePool", "Softmax"}),
    moves=frozenset({"MaxPool", "Resize"}),
    float_results=frozenset(),
    tables=False,
    source="https://onnxruntime.ai/docs/execution-providers/Xnnpack-ExecutionProvider.html",
)
SYMMETRIC = QuantizationStyle(activation="int8", activation_symmetric=True, computes=LINEAR, products=True)

# The name of a provider -> its style. Those without a source say what the provider is known for.
STYLES: Mapping[str, QuantizationStyle] = {
    "cpu": CPU,
    "cuda": STORED_ONLY,
    "tensorrt": TENSORRT,
    "nvtensorrt": TENSORRT,
    "rocm": STORED_ONLY,
    "migraphx": replace(SYMMETRIC, integer_bias=False, float_results=LINEAR),
    "openvino": OPENVINO,
    "dnnl": replace(ASYMMETRIC, on_processor=True),
    "vitisai": replace(SYMMETRIC, per_channel=False, float_results=frozenset(), drops_clips=True),
    "qnn": QNN,
    "nnapi": NNAPI,
    # Its operators are float; what is quantized falls back to CPU, node by node.
    "coreml": replace(
        STORED_ONLY, source="https://onnxruntime.ai/docs/execution-providers/CoreML-ExecutionProvider.html"
    ),
    "dml": replace(ASYMMETRIC, per_channel=False),
    "xnnpack": XNNPACK,
    "webgpu": STORED_ONLY,
    "webnn": STORED_ONLY,
    "acl": SYMMETRIC,
    "cann": SYMMETRIC,
    "rknpu": replace(ASYMMETRIC, per_channel=False),
    "js": STORED_ONLY,
    "azure": ASYMMETRIC,
}
