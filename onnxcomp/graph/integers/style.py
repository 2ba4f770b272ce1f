"""How integers are computed with: element types, operators, and the form in which kernels are found.

    QuantizationStyle()  ->  uint8 activations x int8 weights a channel; Conv, Gemm, MatMul compute in integers,
                             Add, Mul, pools, ... do between them; MaxPool, Reshape, ... hand on codes

What each execution provider wants is in the table of ``onnxcomp.target``.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.operators import LINEAR, MATRIX_PRODUCTS, RESHAPING

TURNING = RESHAPING | {"Transpose"}
CHOOSING = frozenset({"Gather", "GatherElements", "Slice", "Split", "Expand", "Tile", "DepthToSpace"})


@dataclass(frozen=True, kw_only=True)
class QuantizationStyle:
    """The integer arithmetic that a provider has fast kernels for, and the form in which it finds it.

    activation, weight: element types; symmetric means a zero point in the middle of the range.
    per_channel: one weight scale an output channel, for the operators of ``channelled``.
    on_processor: computed by the processor, so that its instructions matter.
    reduce_range: weights keep to 7 bits, where the processor's 16-bit sums would saturate.
    fast_integer: False where integers are only stored and float16 is what runs fast.

    computes: multiply and accumulate in integers. between: compute in integers where they stand between such.
    moves: hand on codes as they are. float_results: hand out floats when no QuantizeLinear follows.
    everywhere: all operators of the lists want a grid on all sides, whatever their neighbours are.
    expands: made of Add, Clip and Mul in integers, where no kernel does them at once.
    products: MatMul of two activations, too. tables: rows of constant tables are looked up as codes.
    rescales: a product with a positive number is the same codes on a grid of another scale.
    integer_bias: int32 in the unit of the accumulator; else the bias stays float.
    joins_sums: an Add goes into the Conv before it, whose own result then stays float.
    drops_clips: Relu, and Clip from zero, must be left out where the grid says the same.
    least_channels: a first Conv of fewer input channels runs faster with that many, the last ones of zeros, where
        its outputs are a multiple of ``whole_outputs``.
    shows_kernels: ONNX Runtime can write down which nodes it replaced.
    source: the address that the row was taken from, "" where it was measured.
    """

    activation: str = "uint8"
    activation_symmetric: bool = False
    weight: str = "int8"
    weight_symmetric: bool = True
    per_channel: bool = True
    channelled: frozenset[str] = LINEAR
    on_processor: bool = False
    reduce_range: bool = False
    fast_integer: bool = True
    computes: frozenset[str] = LINEAR - {"ConvTranspose"}
    between: frozenset[str] = frozenset({
        "Add", "Mul", "Concat", "Where", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax",
    })  # fmt: skip
    moves: frozenset[str] = TURNING | CHOOSING | {"MaxPool", "Resize", "ReduceMax"}
    float_results: frozenset[str] = MATRIX_PRODUCTS
    everywhere: bool = False
    expands: frozenset[str] = frozenset()
    products: bool = False
    rescales: bool = False
    tables: bool = True
    integer_bias: bool = True
    joins_sums: bool = False
    drops_clips: bool = False
    least_channels: int = 1
    whole_outputs: int = 1
    shows_kernels: bool = False
    source: str = ""
