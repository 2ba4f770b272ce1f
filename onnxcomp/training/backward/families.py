"""All rules: importing the families registers them."""

from __future__ import annotations

from onnxcomp.training.backward import (
    activations,
    control_flow,
    convolutions,
    elementwise,
    moving,
    normalizations,
    pooling,
    products,
    quantization,
    reductions,
    resizing,
)
from onnxcomp.training.backward.rules import RULES

__all__ = [
    "RULES",
    "activations",
    "control_flow",
    "convolutions",
    "elementwise",
    "moving",
    "normalizations",
    "pooling",
    "products",
    "quantization",
    "reductions",
    "resizing",
]
