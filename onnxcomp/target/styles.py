"""Which integer arithmetic each execution provider runs fast, as a table.

    STYLES["cpu"]  ->  uint8 activations x int8 weights a channel; Conv, Gemm, MatMul compute in integers, Add, Mul,
                       pools, ... do between them; MaxPool, Reshape, ... hand on codes

The pass that quantizes reads nothing but these fields, so a provider is described here and nowhere else. The row of
the CPU was measured, and its operators are those that ONNX Runtime 1.32 replaces by integer kernels, found by looking
at the models that it optimizes. The other rows say what the provider's documentation asks for (``source``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
RESHAPING = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
CHOOSING = frozenset({"Gather", "GatherElements", "Slice", "Split", "Expand", "Tile", "DepthToSpace"})
# Operators -> the element types that QuantizeLinear has for them.
TYPES = ("uint8", "int8", "uint16", "int16")
WEIGHT_TYPES = ("int8", "uint8")


@dataclass(frozen=True, kw_only=True)
class QuantizationStyle:
    """The integer arithmetic that a provider has fast kernels for, and the form in which it finds it.

    activation, weight: element types; symmetric means a zero point in the middle of the range.
    per_channel: one weight scale an output channel, for the operators of ``channelled``.
    reduce_range: weights keep to 7 bits, where the processor's 16-bit sums would saturate.
    fast_integer: False where integers are only stored and float16 is what runs fast.

    computes: multiply and accumulate in integers. between: compute in integers where they stand between such.
    moves: hand on codes as they are. float_results: hand out floats when no QuantizeLinear follows.
    everywhere: all operators of the lists want a grid on all sides, whatever their neighbours are.
    products: MatMul of two activations, too. tables: rows of constant tables are looked up as codes.
    integer_bias: int32 in the unit of the accumulator; else the bias stays float.
    joins_sums: an Add goes into the Conv before it, whose own result then stays float.
    drops_clips: Relu, and Clip from zero, must be left out where the grid says the same.
    shows_kernels: ONNX Runtime can write down which nodes it replaced.
    source: the address that the row was taken from, "" where it was measured.
    """

    activation: str = "uint8"
    activation_symmetric: bool = False
    weight: str = "int8"
    weight_symmetric: bool = True
    per_channel: bool = True
    channelled: frozenset[str] = LINEAR
    reduce_range: bool = False
    fast_integer: bool = True
    computes: frozenset[str] = LINEAR - {"ConvTranspose"}
    between: frozenset[str] = frozenset({
        "Add", "Mul", "Concat", "Where", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax",
    })  # fmt: skip
    moves: frozenset[str] = RESHAPING | CHOOSING | {"MaxPool", "Resize", "ReduceMax"}
    float_results: frozenset[str] = frozenset({"Gemm", "MatMul"})
    everywhere: bool = False
    products: bool = False
    tables: bool = True
    integer_bias: bool = True
    joins_sums: bool = False
    drops_clips: bool = False
    shows_kernels: bool = False
    source: str = ""


ASYMMETRIC = QuantizationStyle()
CPU = replace(ASYMMETRIC, shows_kernels=True)
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
    moves=RESHAPING | CHOOSING | {"MaxPool", "Resize"},
    float_results=LINEAR,
    products=True,
    tables=False,
    integer_bias=False,
    joins_sums=True,
    source="https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/"
    "quantized-types-explicit-quantization.html",
)
# Its low precision transformations move DequantizeLinear down through these operators; results may stay float.
OPENVINO = QuantizationStyle(
    computes=LINEAR,
    between=frozenset({
        "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "PRelu", "Clip", "ReduceMean",
        "ReduceSum", "LayerNormalization", "Sub",
    }),
    moves=RESHAPING | CHOOSING | {"MaxPool", "Resize", "ReduceMax", "Pad"},
    float_results=LINEAR,
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
    moves=RESHAPING | CHOOSING | {"MaxPool", "Resize", "SpaceToDepth", "Pad"},
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
    moves=RESHAPING | {"MaxPool", "Resize", "Gather", "Slice", "Split", "DepthToSpace"},
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
    "dnnl": ASYMMETRIC,
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
