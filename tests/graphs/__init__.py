"""Random ONNX models: `models()` for hypothesis, `draw_models` for parametrized tests, `feeds_for` both."""

from tests.graphs.drawing import draw_models, models
from tests.graphs.feeding import feeds_for

__all__ = ["draw_models", "feeds_for", "models"]
