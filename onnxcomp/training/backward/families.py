"""All rules: importing the families registers them."""

from __future__ import annotations

from onnxcomp.training.backward.rule import RULES
from onnxcomp.training.backward.rules import (
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
