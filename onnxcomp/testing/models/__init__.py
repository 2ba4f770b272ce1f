"""Drawn models, as exporters write them: every kind of weight, layer, version and leftover, the same for a seed."""

from onnxcomp.testing.models.drawing import build_model, draw_models
from onnxcomp.testing.models.feeding import feeds_for

__all__ = ["build_model", "draw_models", "feeds_for"]
