"""Drawn models as hypothesis draws them: a failing one shrinks to few and plain blocks."""

import onnx
from hypothesis import strategies as st

from onnxcomp.testing.models import build_model


class HypothesisChooser:
    """Choices that hypothesis draws, so that a failing model shrinks to few and plain blocks."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))


@st.composite
def models(draw: st.DrawFn, *, max_blocks: int = 6) -> onnx.ModelProto:
    """Draw a model of one to `max_blocks` blocks that onnx.checker accepts and ONNX Runtime runs."""
    chooser = HypothesisChooser(draw)
    return build_model(chooser, blocks=chooser.integer(1, max_blocks))
