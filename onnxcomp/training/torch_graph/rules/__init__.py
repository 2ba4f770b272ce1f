"""The rules of ONNX's own operators, by family."""

from onnxcomp.training.torch_graph.rules import (
    activations,
    control_flow,
    convolutions,
    elementwise,
    generators,
    indexing,
    normalization,
    padding,
    pooling,
    products,
    quantization,
    recurrent,
    reductions,
    resizing,
    shapes,
    signals,
)

FAMILIES = (
    activations, control_flow, convolutions, elementwise, generators, indexing, normalization, padding, pooling,
    products, quantization, recurrent, reductions, resizing, shapes, signals,
)  # fmt: skip
