"""Random ONNX models: `models()` for hypothesis, `draw_models` for parametrized tests, `feeds_for` both."""

from onnxcomp.testing.models import draw_models, feeds_for
from tests.graphs.strategy import models

__all__ = ["draw_models", "feeds_for", "models"]
